"""The operator's environment: defaults, and refusals that name the variable."""

from __future__ import annotations

import pytest
from holdfast_operator.settings import Settings, SettingsError, load

IMAGE = {"HOLDFAST_SIDECAR_IMAGE": "sidecar:1"}


def test_only_the_image_must_be_given():
    assert load(IMAGE) == Settings("sidecar:1")


def test_all_of_it():
    given = {"HOLDFAST_NAMESPACES": "a, b", "HOLDFAST_HTTP_PORT": "0", "HOLDFAST_TAINT_NODES": "true"}
    assert load(IMAGE | given) == Settings("sidecar:1", namespaces=("a", "b"), http_port=0, taint_nodes=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_SIDECAR_IMAGE", ""),
        ("HOLDFAST_SIDECAR_PULL_POLICY", "Sometimes"),
        ("HOLDFAST_HTTP_PORT", "http"),
        ("HOLDFAST_LOG_LEVEL", "LOUD"),
        ("HOLDFAST_TAINT_NODES", "yes"),
    ],
)
def test_refusals_name_the_variable(name: str, value: str):
    with pytest.raises(SettingsError, match=name):
        load(IMAGE | {name: value})
