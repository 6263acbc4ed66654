"""The operator's metrics: what of a job is exported, and when it is not."""

from __future__ import annotations

import itertools

import pytest
from holdfast_core.planner import Avoided, NodeFailure, Protection, Status, Worker
from holdfast_operator.metrics import Metrics, sample

JOB = {"namespace": "team", "job_name": "gpt"}
TRAINS = Status(
    phase="Running",
    first_step_at=1.0,
    workers=(Worker(0), Worker(1)),
    protection=Protection(1, 7, "any node"),
    avoided=(Avoided("n1", 2, "", 1.0, 2.0),),
    spares_ready=2,
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, JOB | labels)


def test_what_protects_a_job():
    metrics = Metrics()
    metrics.sample("uid", sample("team", "gpt", TRAINS, 2))
    assert value(metrics, "holdfast_job_protected_faults") == 1.0
    assert value(metrics, "holdfast_job_avoided_nodes") == 1.0
    assert value(metrics, "holdfast_job_spares_ready") == 2.0


@pytest.mark.parametrize(
    "status",
    [
        Status(**{**TRAINS.__dict__, "protection": None}),  # switched off
        Status(**{**TRAINS.__dict__, "workers": (Worker(0),)}),  # nobody to protect it
        Status(**{**TRAINS.__dict__, "first_step_at": None}),  # nothing to protect
        Status(**{**TRAINS.__dict__, "phase": "Succeeded"}),
    ],
    ids=["off", "single pod", "not training yet", "ended"],
)
def test_a_job_of_which_no_protection_is_asked_raises_no_alarm(status: Status):
    metrics = Metrics()
    metrics.sample("uid", sample("team", "gpt", status, 1))
    assert value(metrics, "holdfast_job_protected_faults") is None


def test_each_dead_node_is_counted_once_with_the_time_that_it_took_to_see():
    metrics = Metrics()
    first = NodeFailure("n1", 10.0, "PodUnreachable", 2.2)
    second = NodeFailure("n2", 20.0, "PodUnreachable", 2.4)
    passes = [(), (first,), (first,), (first, second), (second,)]  # the window moves on
    for before, after in itertools.pairwise(passes):
        metrics.planned("team", "gpt", Status(node_failures=before), Status(node_failures=after))
    assert value(metrics, "holdfast_detection_seconds_count", cause="PodUnreachable") == 2.0
    assert value(metrics, "holdfast_detection_seconds_sum", cause="PodUnreachable") == pytest.approx(4.6)
