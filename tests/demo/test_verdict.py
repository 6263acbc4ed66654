"""When the demo may say that all went well: levels, saved steps, weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from holdfast_demo import timeline
from holdfast_demo.errors import WaitTimeout
from holdfast_demo.kube import ApiError
from holdfast_demo.measure import NONE, Before, Outcome, judge
from holdfast_demo.report import Result, Skipped, table
from holdfast_demo.scenario import FAULTS
from holdfast_demo.stages import protected_as_far_as_nodes_go
from holdfast_demo.steplog import Sample, seconds
from holdfast_demo.waiting import wait_for

GOOD = Outcome("pod deleted", "pvc", 40, 0, 8.2, at=1000.0, resumed_at=1008.2)
BEFORE = Before(attempt=3, step=41, saved={"memory": 40, "pvc": 38, "s3": 30})


@pytest.mark.parametrize(
    ("change", "levels", "floor", "problem"),
    [
        ({}, ("memory", "pvc"), ("memory", "pvc"), ""),
        ({"level": "s3"}, ("memory", "pvc"), ("pvc",), "resumed from s3, expected memory or pvc"),
        ({"level": "scratch", "resumed_step": -1}, ("memory", "pvc"), ("pvc",), "resumed from scratch"),
        ({"resumed_step": 39}, ("pvc",), ("memory",), "resumed from step 39, but step 40 was saved"),
        ({"resumed_step": 38}, ("pvc",), ("pvc", "s3"), ""),
        ({"resumed_step": 37}, ("pvc",), ("pvc", "s3"), "resumed from step 37, but step 38 was saved"),
        ({"level": NONE, "resumed_step": 3}, (NONE,), ("memory",), ""),
    ],
)
def test_an_outcome_is_judged_by_its_level_and_by_what_was_saved(
    change: dict[str, Any], levels: tuple[str, ...], floor: tuple[str, ...], problem: str
) -> None:
    verdict = judge(replace(GOOD, **change), BEFORE, levels, floor)
    assert verdict.startswith(problem)
    assert bool(verdict) == bool(problem)


def _result(*faults: Outcome, weights: tuple[str | None, str | None] = ("a" * 64, "a" * 64)) -> Result:
    return Result(faults, (Skipped("node powered off", "why"),), weights, 10.0, 60.0, 600, 0.15, 0.8)


@pytest.mark.parametrize(
    ("result", "passed"),
    [
        (_result(GOOD), True),
        (_result(), False),
        (_result(GOOD, replace(GOOD, problem="resumed from s3, expected pvc")), False),
        (_result(GOOD, weights=("a" * 64, "b" * 64)), False),
        (_result(GOOD, weights=(None, None)), False),
        (_result(GOOD, weights=("a" * 64, None)), False),
    ],
)
def test_the_demo_passes_only_if_all_of_it_held(result: Result, passed: bool) -> None:
    assert result.passed is passed


def test_the_json_has_what_others_read(tmp_path: Path) -> None:
    _result(GOOD).write(tmp_path / "build" / "demo.json")
    document = json.loads((tmp_path / "build" / "demo.json").read_text())
    first = document["faults"][0]
    assert {k: first[k] for k in ("kind", "level", "resumed_step", "lost_steps", "seconds")} == {
        "kind": "pod deleted",
        "level": "pvc",
        "resumed_step": 40,
        "lost_steps": 0,
        "seconds": 8.2,
    }
    assert document["bit_identical"] is True
    assert document["set_up_seconds"] == 10.0


def test_the_table_names_what_is_wrong() -> None:
    text = table([GOOD, replace(GOOD, kind="node powered off", problem="resumed from step 1, but step 2 was saved")])
    assert "NOT OK: resumed from step 1, but step 2 was saved" in text
    assert len({len(line.split("8.20")[0]) for line in text.splitlines()[2:]}) == 1, "columns are aligned"


def test_every_fault_of_the_issue_is_in_the_scenario() -> None:
    assert [f.kind for f in FAULTS] == [
        "trainer process killed",
        "trainer segfaults",
        "sidecar container killed",
        "pod deleted",
        "node powered off",
        "operator killed in recovery",
        "all pods deleted, no PVC",
    ]


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10.5Z", 10.5),
        ("1970-01-01T00:00:10.123456789Z", 10.123456789),
    ],
)
def test_times_of_log_lines(stamp: str, time: float) -> None:
    assert seconds(stamp) == pytest.approx(time, abs=1e-9)


def test_a_wait_is_bounded_and_says_what_it_saw() -> None:
    with pytest.raises(WaitTimeout, match=r"a bus: not within 0 s; last seen: a taxi"):
        wait_for(lambda: False, 0.0, "a bus", seen=lambda: "a taxi")


def test_a_wait_outlasts_an_api_server_that_does_not_answer_for_once() -> None:
    answers = iter([ApiError(0, "reset"), ApiError(429, "busy"), ApiError(503, "starting"), True])

    def ask() -> bool:
        if isinstance(answer := next(answers), ApiError):
            raise answer
        return answer

    assert wait_for(ask, 10.0, "an answer", every=0.001)


def _refuse(status: int) -> bool:
    raise ApiError(status, "no")


def test_a_wait_ends_at_once_when_the_answer_is_no_and_names_the_trouble_when_there_is_none() -> None:
    with pytest.raises(ApiError, match="403: no"):
        wait_for(lambda: _refuse(403), 10.0, "a bus")
    with pytest.raises(WaitTimeout, match="last seen: 503: no"):
        wait_for(lambda: _refuse(503), 0.0, "a bus", seen=lambda: "a taxi")
    with pytest.raises(WaitTimeout, match="last seen: 500: no"):
        wait_for(lambda: False, 0.0, "a bus", seen=lambda: _refuse(500))


def test_the_picture_is_drawn_even_for_faults_at_the_same_time(tmp_path: Path) -> None:
    samples = [Sample(1000.0 + i / 10, i, "gpt-0") for i in range(100)]
    samples += [Sample(1015.0 + i / 10, 90 + i, "gpt-0") for i in range(100)]
    outcomes = [replace(GOOD, at=1010.0, resumed_at=1015.0), replace(GOOD, at=1010.5, resumed_at=1016.0, level="scratch")]
    timeline.draw(tmp_path / "demo.png", samples, outcomes, "test")
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("status", "reason", "ready"),
    [
        ("True", "PeersHoldParity", True),
        ("False", "SharedNode", True),  # two nodes were left for three pods
        ("False", "Replicating", False),
        ("False", "ReplicationFails", False),
    ],
)
def test_the_next_fault_comes_when_peers_hold_parity_even_if_two_pods_share_a_node(status: str, reason: str, ready: bool):
    conditions = [{"type": "Training", "status": "True"}, {"type": "Protected", "status": status, "reason": reason}]
    assert protected_as_far_as_nodes_go({"conditions": conditions}) is ready


def test_a_job_that_says_nothing_of_protection_is_not_ready_for_a_fault():
    assert not protected_as_far_as_nodes_go({})
