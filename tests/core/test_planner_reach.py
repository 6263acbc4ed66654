"""Sources that are slow or out of reach while a lost rank is brought back: neither is a reason to lose what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from holdfast_core.planner import Observed, Status, plan, reasons
from holdfast_core.planner.types import Emit, Plan, Policy

from .world import World
from .world_parts import job


class Rebuilding:
    """A job that has lost the node of pod 2, up to the moment in which that pod is told to bring rank 2 back; then what its
    sidecar says is made up."""

    def __init__(self, *stores: str) -> None:
        self.world = World(job(stores=stores, parity=1))
        self.world.run_to_step(13)
        self.world.power_off(2)
        self.world.run(lambda w: w.status.stage == "preparing" and w.status.attempt == 2)
        self.source = replace(self.world.status.source, rank=2)
        self.status, self.now, self.said = self.world.status, self.world.now, []

    def hear(self, seconds: float = 0.0, **told: object) -> Status:
        """One pass, that much later, in which pod 2's sidecar says this of the present attempt."""
        self.now += seconds
        lost = self.world.pod(2).name
        views = [self.world._view(p) for p in self.world.pods.values()]
        mine = [replace(v, agent=replace(v.agent, attempt=self.status.attempt, **told)) if v.name == lost else v for v in views]
        found = plan(self.world.job, Observed(tuple(mine)), self.status, self.now)
        self.said += _events(found)
        self.status = found.status
        return self.status

    def out_of_reach(self) -> Status:
        """It gives up for now, and what the planner then does before the next preparation."""
        self.hear(15.0, phase="failed", error="no connection: refused", error_source=self.source, passing=True)
        return self.until(lambda: self.status.stage != "gathering")

    def until(self, condition: Callable[[], bool]) -> Status:
        for _ in range(20):
            if condition() or self.status.terminal:
                return self.status
            self.hear(0.1, phase="idle")
        raise AssertionError(f"still {self.status.stage}: {self.status.message}")


def _events(found: Plan) -> list[str]:
    return [a.message for a in found.actions if isinstance(a, Emit)]


def test_a_step_that_only_peers_hold_is_not_given_up_because_they_are_out_of_reach():
    rebuild = Rebuilding()
    for _ in range(5):
        status = rebuild.out_of_reach()
        assert (status.stage, status.source.step, status.source.level) == ("preparing", rebuild.source.step, "peers")
        assert status.history[-1].step == rebuild.source.step, "no attempt makes it void"
    assert any("is out of reach, and nothing else holds a step: tried again" in text for text in rebuild.said)
    assert not any("scratch" in text for text in rebuild.said)


def test_asking_for_ever_is_bounded_by_the_budget_of_restarts_and_says_what_was_missing():
    rebuild = Rebuilding()
    rebuild.world.job = replace(rebuild.world.job, policy=Policy(restart_limit=3))
    for _ in range(20):
        rebuild.out_of_reach()
    assert (rebuild.status.phase, rebuild.status.cause.reason) == ("Failed", reasons.POD_UNREACHABLE)
    assert "can the pods reach each other?" in rebuild.status.message


def test_a_source_that_turns_out_bad_is_excluded_for_good_though_it_was_in_doubt():
    rebuild = Rebuilding()
    rebuild.out_of_reach()
    status = rebuild.hear(0.1, phase="failed", error="checksum", error_source=rebuild.source)
    assert (status.excluded, status.doubted) == ((rebuild.source,), ())
    rebuild.until(lambda: rebuild.status.stage != "gathering")
    assert rebuild.status.source != replace(rebuild.source, rank=-1)


@pytest.mark.parametrize("stores", [(), ("pvc",)])
def test_a_rebuild_may_take_longer_than_the_deadline_as_long_as_bytes_arrive(stores: tuple[str, ...]):
    rebuild = Rebuilding(*stores)
    deadline = rebuild.world.job.policy.prepare_deadline
    for minute in range(20):
        status = rebuild.hear(60.0, phase="preparing", brought=(minute + 1) << 30)
        assert (status.attempt, status.stage) == (2, "preparing")
    assert status.message == "attempt 2: pods have brought 20.0 GiB from peers so far"
    status = rebuild.hear(deadline - 1, phase="preparing", brought=20 << 30)
    assert status.stage == "preparing"
    status = rebuild.hear(2.0, phase="preparing", brought=20 << 30)
    assert (status.attempt, status.stage) == (3, "gathering")
    assert "made no progress for 180 s" in rebuild.said[-1]


def test_a_sidecar_that_restarts_again_and_again_is_no_progress():
    """Each time it begins at the first byte: what was not there before counts, not that it changes."""
    rebuild = Rebuilding()
    for minute in range(10):
        status = rebuild.hear(60.0, phase="preparing", brought=((1, 3, 2)[minute % 3]) << 30)
    assert status.attempt > 2
    assert any("made no progress for 180 s" in text for text in rebuild.said)


def test_the_next_attempt_counts_what_it_brings_anew():
    rebuild = Rebuilding()
    rebuild.hear(60.0, phase="preparing", brought=5 << 30)
    status = rebuild.out_of_reach()
    assert (status.stage, status.brought) == ("preparing", 0)
