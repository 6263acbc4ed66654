"""Shared by the tests of Checkpointer and launcher."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Snapshots of this test go to a directory of its own, as in a run without a sidecar."""
    for name in ("HOLDFAST_SOCKET", "RANK", "WORLD_SIZE", "HOLDFAST_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "snapshots"
    monkeypatch.setenv("HOLDFAST_DIR", str(folder))
    return folder
