"""Pods that were made before a node was found dead, and are sent there by a scheduler that does not know it yet."""

from __future__ import annotations

from dataclasses import replace

import pytest
from holdfast_core.planner import Cause, NodeFailure, Observed, PodView, Status, nodes, reasons
from holdfast_core.planner.judge import stranded
from holdfast_core.planner.passing import Pass

from .world import World
from .world_parts import Pod, job

DIED = 1000.0


def waiting(**more) -> PodView:
    """Worker 0's new pod: made a second before node n1 was found dead, then sent there."""
    return PodView("p0", 0, 2, **({"node": "n1", "age": 1.0} | more))


def dark(now: float, *pods: PodView, at: float = DIED) -> dict[str, float]:
    status = Status(node_failures=(NodeFailure("n1", at, reasons.POD_UNREACHABLE),))
    return nodes.dark(Pass(job(), Observed(pods), status, now))


@pytest.mark.parametrize(
    ("since", "seen", "expected"),
    [
        (0.0, {}, True),
        (14.0, {}, True),  # nobody could have seen a sign of life by now
        (14.0, {"node_lease_age": 20.0}, True),
        (30.0, {}, False),  # and now it is not known whether there was one
        (30.0, {"node_lease_age": 33.0}, True),
        (30.0, {"node_lease_age": 4.0}, False),  # its kubelet is back
        (119.0, {"node_lease_age": 122.0}, True),
        (121.0, {"node_lease_age": 124.0}, False),  # by then it is Kubernetes' business
        (3.0, {"agent_age": 0.4}, False),  # somebody is heard from there
    ],
)
def test_a_node_stays_dark_until_it_shows_a_sign_of_life(since: float, seen: dict[str, float], expected: bool):
    assert dark(DIED + since, waiting(**seen)) == ({"n1": DIED} if expected else {})


@pytest.mark.parametrize(
    ("pod", "given_up"),
    [
        (waiting(age=5.0), True),  # made at 998
        (waiting(age=3.1), True),
        (waiting(age=3.0), False),  # its makers knew, and it found no better place
        (waiting(age=5.0, node="n2"), False),
        (waiting(age=5.0, node=""), False),
        (waiting(age=5.0, phase="Running"), False),
    ],
)
def test_who_is_sent_to_a_node_that_was_found_dead_before(pod: PodView, given_up: bool):
    found = stranded((pod,), {}, {"n1": DIED}, DIED + 3.0)
    text = "pod p0 was made before node n1 was found dead, and sent there"
    assert found == ({0: Cause(reasons.POD_UNREACHABLE, text)} if given_up else {})


def two_dead_nodes() -> tuple[World, Pod]:
    """The first one's pod is replaced, the other node is found dead, and only then the scheduler sends the new pod there."""
    world = World(job(replicas=4, stores=(), parity=1, size=2), steps=400)
    world.run_to_step(13)
    for index in (0, 1):
        world.power_off(index)
    world.pod(1).dark = world.now + 0.25
    world.run(lambda w: any(x.incarnation == 2 for x in w.status.workers), limit=50)
    new = world.pod(0)
    assert new.incarnation == 2
    new.node = -1
    world.run(lambda w: len(w.status.node_failures) == 2, limit=50)
    for pod in world.pods.values():
        if pod.incarnation == 2 and pod is not new:
            pod.node = 2
    new.node, new.dark = 1, world.now
    return world, new


def test_a_pod_that_is_sent_to_a_node_after_that_was_found_dead_is_made_anew_at_once():
    world, new = two_dead_nodes()
    world.run(lambda w: w.pod(0).incarnation == 3, limit=2)
    assert "was made before node n1 was found dead" in world.emitted_text(reasons.POD_REPLACED)
    world.pod(0).node = 3
    world.run(lambda w: w.status.recoveries == 1, limit=200)
    assert new.name in world.status.dead_pods
    assert [f.node for f in world.status.node_failures].count("n1") == 1, "the node has not failed again"


def test_one_that_finds_no_better_place_is_not_made_anew_again_and_again():
    world, _ = two_dead_nodes()
    world.run(lambda w: w.pod(0).incarnation == 3, limit=2)
    world.pod(0).node, world.pod(0).dark = 1, world.now
    for _ in range(200):
        world.tick()
    assert world.pod(0).incarnation == 3


def test_one_on_a_node_that_is_back_is_left_to_start():
    world, new = two_dead_nodes()
    others = (world._view(p) for p in world.pods.values() if p is not new)
    later = world.now + 40.0
    view = replace(world._view(new), node_lease_age=3.0, age=later - new.born)
    assert nodes.dark(Pass(world.job, Observed((view, *others)), world.status, later)) == {}


def test_a_pod_that_was_never_heard_does_not_count_against_its_node_twice():
    status = Status(node_failures=(NodeFailure("n1", DIED, reasons.POD_UNREACHABLE),))
    for since, heard, count in ((40.0, None, 1), (40.0, 2.6, 2), (130.0, None, 2)):
        work = Pass(job(), Observed(), status, DIED + since)
        nodes.blame(work, [(waiting(agent_age=heard), Cause(reasons.NODE_LOST, "is not Ready"))])
        assert len(work.status.node_failures) == count, (since, heard)
        assert work.status.dead_pods == ("p0",)
