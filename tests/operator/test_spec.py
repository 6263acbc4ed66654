"""What the CRD can't refuse is refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.interval import Auto, Rule, Seconds, Steps
from holdfast_operator import spec
from holdfast_operator.spec import SpecError
from operator_samples import job, trainer


def test_a_whole_spec():
    parsed = spec.parse(job())
    assert (parsed.job.replicas, parsed.job.world_size, parsed.slots, parsed.slot_bytes) == (2, 2, 3, 64 * 2**20)
    assert parsed.job.stores == ("pvc", "s3")
    assert parsed.job.policy.restart_window == 3600.0
    assert parsed.generation == 3


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1h", 3600)])
def test_durations(text: str, seconds: float):
    body = job(failurePolicy={"restarts": {"window": text}})
    assert spec.parse(body).job.policy.restart_window == seconds


@pytest.mark.parametrize(
    ("every", "rule"),
    [
        (None, Steps(1)),
        ({"steps": 8}, Steps(8)),
        ({"seconds": 30}, Seconds(30.0)),
        ({"auto": {}}, Auto(1, None, 600.0)),
        ({"auto": {"minSteps": 2, "maxSteps": 64, "maxSeconds": 60}}, Auto(2, 64, 60.0)),
    ],
)
def test_how_often_snapshots_are_taken(every: dict[str, Any] | None, rule: Rule):
    body = job()
    body["spec"]["checkpoint"] |= {"every": every} if every else {}
    assert spec.parse(body).job.every == rule


def test_pods_are_not_outdated_by_another_interval():
    body = job()
    before = spec.parse(body).fingerprint
    body["spec"]["checkpoint"]["every"] = {"steps": 8}
    assert spec.parse(body).fingerprint == before
    body["spec"]["checkpoint"]["memory"]["slots"] = 4
    assert spec.parse(body).fingerprint != before


def test_peers_are_on_unless_they_are_switched_off():
    parsed = spec.parse(job())
    assert parsed.job.peers == PeersConfig(group_size=4, parity=1, bandwidth=0, encrypted=True)
    assert parsed.job.topology == "kubernetes.io/hostname"
    body = job()
    body["spec"]["checkpoint"]["peers"] = {
        "groupSize": 8, "parity": 2, "topologyKey": "zone", "bandwidth": "2Gi", "encryption": "none",
    }  # fmt: skip
    parsed = spec.parse(body)
    assert parsed.job.peers == PeersConfig(group_size=8, parity=2, bandwidth=2 * 2**30, encrypted=False)
    assert parsed.job.topology == "zone"
    body["spec"]["checkpoint"]["peers"] = {"parity": 0}
    assert spec.parse(body).job.peers.parity == 0


def test_spares_and_what_is_done_about_nodes():
    parsed = spec.parse(job())
    policy = parsed.job.policy
    assert (parsed.job.spares, policy.force_delete, policy.node_limit, policy.node_window) == (0, False, 2, 3600.0)
    body = job(failurePolicy={"forceDeletePods": True, "nodes": {"limit": 3, "window": "30m"}})
    body["spec"]["workers"]["spares"] = 2
    parsed = spec.parse(body)
    policy = parsed.job.policy
    assert (parsed.job.spares, policy.force_delete, policy.node_limit, policy.node_window) == (2, True, 3, 1800.0)


def _all_parity(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["peers"] = {"groupSize": 2, "parity": 2}


def _bad_bandwidth(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["peers"] = {"bandwidth": "fast"}


def _bad_node_window(body: dict[str, Any]) -> None:
    body["spec"]["failurePolicy"]["nodes"] = {"window": "soon"}


def _two_intervals(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["every"] = {"steps": 1, "auto": {}}


def _crossed_limits(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["every"] = {"auto": {"minSteps": 8, "maxSteps": 4}}


def _without_trainer(body: dict[str, Any]) -> None:
    trainer(body)["name"] = "main"


def _without_command(body: dict[str, Any]) -> None:
    del trainer(body)["command"]


def _bad_gpus(body: dict[str, Any]) -> None:
    trainer(body)["resources"] = {"limits": {"nvidia.com/gpu": "many"}}


def _bad_size(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["memory"]["size"] = "1XB"


def _bad_window(body: dict[str, Any]) -> None:
    body["spec"]["failurePolicy"]["restarts"]["window"] = "soon"


def _escaping_path(body: dict[str, Any]) -> None:
    body["spec"]["checkpoint"]["stores"][0]["persistentVolumeClaim"]["subPath"] = "a/../../b"


def _no_spec(body: dict[str, Any]) -> None:
    body["spec"] = {}


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_without_trainer, "spec.workers.template.spec.containers"),
        (_without_command, "spec.workers.template.spec.containers"),
        (_bad_gpus, "limits[nvidia.com/gpu]"),
        (_bad_size, "spec.checkpoint.memory.size"),
        (_bad_window, "spec.failurePolicy.restarts.window"),
        (_escaping_path, "spec.checkpoint.stores[pvc].persistentVolumeClaim.subPath"),
        (_no_spec, "spec.workers"),
        (_all_parity, "spec.checkpoint.peers.parity"),
        (_bad_bandwidth, "spec.checkpoint.peers.bandwidth"),
        (_bad_node_window, "spec.failurePolicy.nodes.window"),
        (_two_intervals, "spec.checkpoint.every"),
        (_crossed_limits, "spec.checkpoint.every.auto.maxSteps"),
    ],
)
def test_refusals_name_the_field(spoil: Any, field: str):
    body = job()
    spoil(body)
    with pytest.raises(SpecError) as caught:
        spec.parse(body)
    assert caught.value.field == field
