"""Nodes that fail again and again: counted in a window, avoided, and never at the price of the job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from holdfast_core.planner import (
    Avoided,
    DeletePod,
    NodeFailure,
    Observed,
    PodView,
    Policy,
    Status,
    TaintNode,
    UntaintNode,
    Worker,
    nodes,
    plan,
    reasons,
)

from .world import World
from .world_parts import job


def fail(world: World, index: int) -> None:
    """The node of a pod goes off; the job recovers."""
    count = world.status.recoveries
    world.run(lambda w: w.status.stage == "running" and w.status.step >= 0)
    world.power_off(index)
    world.run(lambda w: w.status.recoveries == count + 1)


def failures(*found: tuple[str, float]) -> list[NodeFailure]:
    return [NodeFailure(node, time, reasons.NODE_LOST) for node, time in found]


@pytest.mark.parametrize(
    ("limit", "found", "expected"),
    [
        (2, [], []),
        (2, [("a", 1.0)], []),
        (2, [("a", 1.0), ("b", 2.0), ("a", 3.0)], [("a", 2, 3.0, 3601.0)]),
        (2, [("a", 1.0), ("a", 3.0), ("a", 9.0)], [("a", 3, 9.0, 3603.0)]),  # until fewer than two are left in the window
        (1, [("a", 1.0), ("b", 2.0)], [("a", 1, 1.0, 3601.0), ("b", 1, 2.0, 3602.0)]),
        (0, [("a", 1.0), ("a", 3.0)], []),  # switched off
    ],
)
def test_which_nodes_are_avoided(limit: int, found: list[tuple[str, float]], expected: list[tuple[str, int, float, float]]):
    made = nodes.worst(failures(*found), Policy(node_limit=limit), ())
    assert [(a.node, a.count, a.since, a.until) for a in made] == expected


def test_it_is_remembered_since_when_a_node_is_avoided():
    before = (Avoided("a", 2, "", 3.0, 3601.0),)
    (made,) = nodes.worst(failures(("a", 1.0), ("a", 3.0), ("a", 9.0)), Policy(), before)
    assert made.since == 3.0
    assert made.reason == "3 failures within 3600 s, the last one NodeLost"


def test_a_node_that_failed_twice_gets_no_pod_any_more():
    world = World(job(parity=1), steps=400)
    world.room = [50]
    fail(world, 1)
    assert world.pod(1).node == 1, "one failure is no pattern"
    assert list(nodes.suspects(world.status, world.now)) == ["n1"]
    world.run(lambda w: w.status.step > 60)
    fail(world, 1)
    assert [(a.node, a.count) for a in world.status.avoided] == [("n1", 2)]
    assert world.pod(1).node == 50
    assert not nodes.suspects(world.status, world.now)
    assert "node n1: 2 failures" in world.emitted_text(reasons.NODE_AVOIDED)


def test_a_node_is_avoided_for_a_while_only():
    world = World(job(parity=1, node_window=60.0), steps=400)
    world.room = [50]
    fail(world, 1)
    world.run(lambda w: w.status.step > 60)
    fail(world, 1)
    until = world.status.avoided[0].until
    world.run(lambda w: not w.status.avoided)
    assert until <= world.now < until + 1
    assert "n1 may be used again" in world.emitted_text(reasons.NODE_RESTORED)


def test_pods_that_are_lost_with_one_node_are_one_failure():
    world = World(job(replicas=4, parity=2))
    world.run_to_step(10)
    world.pod(2).node = 1
    for index in (1, 2):
        world.power_off(index)
    world.run(lambda w: w.status.recoveries == 1)
    assert [f.node for f in world.status.node_failures] == ["n1"]


def test_pods_that_are_deleted_say_nothing_of_their_node():
    world = World(job())
    world.run_to_step(10)
    world.delete_pod(1)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.node_failures == ()


def test_the_job_never_waits_for_ever_for_a_node_that_it_forbids():
    world = World(job(parity=1), steps=400)  # no other node
    fail(world, 1)
    world.run(lambda w: w.status.step > 60)
    attempts = world.status.attempt
    fail(world, 1)
    assert "pod gpt-01234-1-3 finds no other node" in world.emitted_text(reasons.NODES_AVOIDED_IN_VAIN)
    assert world.pod(1).name == "gpt-01234-1-4"
    assert (world.status.attempt, world.status.restarts.pod) == (attempts + 1, 2), "this is no failure of the job"
    assert world.status.avoided == ()
    world.finish()
    assert world.status.phase == "Succeeded"


def test_a_pod_that_waits_for_something_else_changes_nothing():
    """It was made before any node was avoided: another one of the same kind would not fare better."""
    status = Status(
        stage="gathering", attempt=1, workers=(Worker(0),), node_failures=tuple(failures(("a", 990.0), ("a", 999.0)))
    )
    pod = PodView("gpt-01234-0-1", 0, 1, age=500.0, waiting="Unschedulable: no GPU")
    decided = plan(job(replicas=1), Observed((pod,)), status, 1000.0)
    assert [a.node for a in decided.status.avoided] == ["a"]
    assert decided.status.workers == (Worker(0, seen=True),)


def test_taints_are_ordered_while_a_node_is_avoided_and_taken_back_afterwards():
    shape = job(replicas=1)
    bad = Status(stage="gathering", attempt=1, workers=(Worker(0),), node_failures=tuple(failures(("a", 1.0), ("a", 999.0))))
    first = plan(shape, Observed(), bad, 1000.0)
    assert TaintNode("a") in first.actions
    assert TaintNode("a") in plan(shape, Observed(), first.status, 1001.0).actions, "an order may get lost"
    later = plan(shape, Observed(), first.status, 3700.0)
    assert UntaintNode("a") in later.actions
    ended = replace(first.status, phase="Failed", stage="done")
    assert UntaintNode("a") in plan(shape, Observed(), ended, 1001.0).actions


# --- forceDeletePods


def lost_pod(**more) -> PodView:
    return PodView("gpt-01234-0-1", 0, 1, **({"phase": "Running", "node": "n0", "deleting": True} | more))


FORCED = DeletePod("gpt-01234-0-1", "node n0 is dead", force=True)
REPLACED = DeletePod("gpt-01234-0-1", "replaced by a newer incarnation")


@pytest.mark.parametrize(
    ("allowed", "dead", "pod", "expected"),
    [
        (True, True, lost_pod(node_ready=False), FORCED),
        (True, True, lost_pod(node_lease_age=25.0), FORCED),
        (True, True, lost_pod(node_ready=True, node_lease_age=4.0), None),  # Kubernetes hears it: it will end the pod
        (True, True, lost_pod(), None),  # not known
        # deleted by somebody, before its node died: only Kubernetes can tell, and both of its signs must agree
        (True, False, lost_pod(node_ready=False, node_lease_age=25.0), FORCED),
        (True, False, lost_pod(node_ready=False), None),  # no lease can be read
        (True, False, lost_pod(node_ready=False, node_lease_age=4.0), None),  # its kubelet lives, and will end the pod
        (True, False, lost_pod(node_lease_age=25.0), None),  # the API server may have been away
        (True, False, lost_pod(deleting=False, node_ready=False), REPLACED),
        (False, False, lost_pod(node_ready=False, node_lease_age=25.0), None),
        (False, True, lost_pod(node_ready=False), None),  # not allowed
        (False, True, lost_pod(deleting=False), REPLACED),
    ],
)
def test_which_pods_are_deleted_by_force(allowed: bool, dead: bool, pod: PodView, expected: DeletePod | None):
    status = Status(stage="gathering", attempt=2, workers=(Worker(0, 2),), dead_pods=(pod.name,) if dead else ())
    decided = plan(job(replicas=1, force_delete=allowed), Observed((pod,)), status, 1000.0)
    assert [a for a in decided.actions if isinstance(a, DeletePod)] == ([expected] if expected else [])


def test_a_pod_that_was_going_when_its_node_died_is_deleted_by_force():
    shape = job(parity=1, force_delete=True)
    world = World(shape, steps=100)
    world.run_to_step(10)
    world.delete_pod(1, grace=30.0)
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    old = next(p for p in world.pods.values() if p.name == "gpt-01234-1-1")
    assert old.deleting is not None
    view = replace(world._view(old), agent=None, agent_age=None, node_ready=False, node_lease_age=45.0)
    others = (world._view(p) for p in world.pods.values() if p is not old)
    decided = plan(shape, Observed((view, *others)), world.status, world.now)
    assert DeletePod(old.name, "node n1 is dead", force=True) in decided.actions


def test_pods_of_a_dead_node_are_remembered_until_they_are_gone():
    world = World(job(parity=1), steps=100)
    world.run_to_step(10)
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.dead_pods == ("gpt-01234-1-1",)
    del world.pods["gpt-01234-1-1"]
    world.tick()
    assert world.status.dead_pods == ()
