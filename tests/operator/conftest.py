"""One API server for all tests of the operator that need a real one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import control_plane
import pytest
from control_plane import ControlPlane


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if absent := control_plane.missing():
        pytest.skip(absent)
    made = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    return name
