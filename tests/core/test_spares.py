"""Pods that wait without a rank, and take a lost one's at once: one story a test."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from holdfast_core.messages import AgentState
from holdfast_core.planner import CreateSpare, DeletePod, Observed, PodView, Spare, Status, Worker, plan, reasons
from holdfast_core.planner.roster import Roster, name

from .world import World
from .world_parts import job


def waiting(world: World) -> list[str]:
    return sorted(p.name for p in world.pods.values() if p.spare and p.index < 0 and p.deleting is None)


def training(**more) -> World:
    world = World(job(**({"parity": 1, "spares": 1} | more)))
    world.run(lambda w: w.status.step >= 12 and w.status.spares_ready == w.job.spares)
    return world


def test_spares_wait_beside_the_job_and_count_as_nothing():
    world = training(spares=2)
    assert waiting(world) == ["gpt-01234-s1-1", "gpt-01234-s2-1"]
    assert (world.status.ready, world.status.spares_ready) == (3, 2)
    members = {m.pod for o in world.orders for m in o.members}
    assert members == {"gpt-01234-0-1", "gpt-01234-1-1", "gpt-01234-2-1"}
    world.finish()
    assert world.status.phase == "Succeeded"
    assert world.status.restarts.pod == 0


def test_a_spare_takes_a_lost_pods_place_at_once_and_another_one_is_made():
    world = training()
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    recovery = world.status.last_recovery
    assert (recovery.cause, recovery.level) == (reasons.POD_UNREACHABLE, "peers")
    assert recovery.seconds < 4.0  # 2.25 s to be sure, then no pod that has to start first
    assert world.status.workers[1] == Worker(1, 2, seen=True, spare=1)
    assert world.pod(1).name == "gpt-01234-s1-1"
    assert "gpt-01234-1-2" not in world.pods
    assert "spare 1 takes its place" in world.emitted_text(reasons.SPARE_TAKEN)
    world.run(lambda w: w.status.spares_ready == 1)
    assert waiting(world) == ["gpt-01234-s2-1"]
    world.finish()
    assert (world.status.phase, world.status.reached) == ("Succeeded", 39)


def test_without_a_spare_left_a_new_pod_is_made():
    world = training(replicas=4, parity=2)
    for index in (1, 2):
        world.power_off(index)
    world.run(lambda w: w.status.recoveries == 1)
    assert sorted(world.pod(i).name for i in (1, 2)) == ["gpt-01234-2-2", "gpt-01234-s1-1"]


def test_a_taken_spare_that_dies_is_replaced_like_any_pod():
    world = training()
    for recoveries in (1, 2):
        world.run(lambda w: w.status.spares_ready == 1)
        world.power_off(1)
        world.run(lambda w, n=recoveries: w.status.recoveries == n)
    assert world.status.workers[1] == Worker(1, 3, seen=True, spare=2)
    world.finish()
    assert world.status.phase == "Succeeded"


def test_a_pod_deleted_in_an_orderly_way_is_followed_by_the_spare_too():
    world = training()
    world.delete_pod(2)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.workers[2].spare == 1
    assert "gpt-01234-2-2" not in world.pods, "a pod that nobody needs was made in advance"


def test_a_spare_that_is_lost_while_it_waits_is_replaced_and_nothing_is_charged():
    world = training()
    del world.pods["gpt-01234-s1-1"]
    world.run(lambda w: "gpt-01234-s2-1" in w.pods and w.status.spares_ready == 1)
    world.pods["gpt-01234-s2-1"].dark = world.now
    world.run(lambda w: "gpt-01234-s3-1" in w.pods)
    assert (world.status.attempt, world.status.restarts.pod, world.status.recent_failures) == (1, 0, ())
    assert "gpt-01234-s1-1 is gone" in world.emitted_text(reasons.SPARE_LOST)
    assert "has been silent" in world.emitted_text(reasons.SPARE_LOST)


def test_a_spare_on_the_dead_node_is_of_no_use():
    world = training()
    world.pods["gpt-01234-s1-1"].node = world.pod(1).node
    world.power_off(1)
    world.pods["gpt-01234-s1-1"].dark = world.now
    world.run(lambda w: w.status.recoveries == 1)
    assert world.pod(1).name == "gpt-01234-1-2"


def test_a_spare_away_from_the_other_pods_is_taken_first():
    world = training(spares=2)
    world.pods["gpt-01234-s1-1"].node = world.pod(0).node
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.pod(1).name == "gpt-01234-s2-1"


def test_a_spare_that_finds_no_node_does_not_disturb_the_job():
    world = training()
    world.pods["gpt-01234-s1-1"].node, world.pods["gpt-01234-s1-1"].kube = -1, "Pending"
    world.tick()
    ready = next(c for c in world.status.conditions if c.type == reasons.PODS_READY)
    assert (ready.status, world.status.spares_ready) == (True, 0)
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.pod(1).name == "gpt-01234-1-2"


def test_a_spare_never_takes_the_place_of_a_worker_that_has_none_yet():
    world = World(job(spares=1))
    world.tick()
    for pod in world.pods.values():
        pod.node = -1
    for _ in range(20):
        world.tick()
    assert waiting(world) == []
    for number, pod in enumerate(world.pods.values()):
        pod.node = number
    world.run(lambda w: w.status.spares_ready == 1)


def test_a_pod_that_finds_no_node_gives_its_place_to_a_spare_that_has_one():
    world = training()
    world.pods["gpt-01234-s1-1"].kube = "Pending"  # not ready when it is needed
    world.pods["gpt-01234-s1-1"].born = world.now + 5.0
    world.power_off(1)
    world.run(lambda w: "gpt-01234-1-2" in w.pods)
    world.pods["gpt-01234-1-2"].node = -1
    world.run(lambda w: w.status.recoveries == 1)
    assert world.pod(1).name == "gpt-01234-s1-1"
    world.run(lambda w: "gpt-01234-1-2" not in w.pods)
    assert (world.status.attempt, world.status.restarts.pod) == (2, 1)


def test_a_spare_that_dies_with_its_node_speaks_against_it():
    world = training()
    world.pods["gpt-01234-s1-1"].dark = world.now
    world.run(lambda w: "gpt-01234-s2-1" in w.pods)
    assert [f.node for f in world.status.node_failures] == ["n101"]
    assert world.status.dead_pods == ("gpt-01234-s1-1",)


def test_as_many_spares_as_the_spec_says_also_when_it_changes():
    world = training(spares=2)
    world.job = replace(world.job, spares=1)
    world.run(lambda w: waiting(w) == ["gpt-01234-s1-1"])
    world.job = replace(world.job, spares=2)
    world.run(lambda w: waiting(w) == ["gpt-01234-s1-1", "gpt-01234-s3-1"])  # a number is used once
    assert world.emitted_text(reasons.SPARE_LOST) == ""


def test_spares_go_when_the_job_ends_well():
    world = training()
    world.finish()
    for _ in range(20):
        world.tick()
    assert not [p for p in world.pods.values() if p.spare]


def test_spares_go_when_the_job_fails_and_pods_with_logs_stay():
    world = training(no_progress_limit=1)
    world.kill_rank(0, signal=None, code=2)
    world.run(lambda w: w.status.phase == "Failed")
    for _ in range(20):
        world.tick()
    assert sorted(world.pods) == ["gpt-01234-0-1", "gpt-01234-1-1", "gpt-01234-2-1"]


@pytest.mark.parametrize(
    ("pod", "counts"),
    [
        (PodView("a", 0, 1), ("worker", 0)),
        (PodView("a", 0, 2), (None, None)),  # made in advance
        (PodView("b", 1, 1), ("stale", None)),
        (PodView("b", 1, 2), ("stale", None)),  # made in advance, but then a spare was there
        (PodView("s1", -1, 1, spare=1), ("worker", 1)),
        (PodView("s2", -1, 1, spare=2), ("stale", None)),  # taken once, and lost
        (PodView("s3", -1, 1, spare=3), ("waits", None)),
        (PodView("c", 2, 1), ("stale", None)),
    ],
    ids=lambda v: v.name if isinstance(v, PodView) else None,
)
def test_who_counts_as_what(pod: PodView, counts: tuple[str | None, int | None]):
    roster = Roster((Worker(0, 1), Worker(1, 2, seen=True, spare=1)), (Spare(3),))
    worker = roster.as_worker(pod)
    found = "worker" if worker else "waits" if roster.waits(pod) else "stale" if roster.is_stale(pod) else None
    assert (found, worker.index if worker else None) == counts
    assert roster.is_stale(pod) == (found == "stale")


def test_names():
    shape = job()
    assert name(shape, Worker(1, 2)) == "gpt-01234-1-2"
    assert name(shape, Worker(1, 3, spare=7)) == "gpt-01234-s7-1"


def test_a_lost_order_to_make_a_spare_is_repeated():
    shape = job(replicas=1, spares=1)
    worker = PodView("gpt-01234-0-1", 0, 1, node="n0")
    first = plan(shape, Observed((worker,)), Status(), 1.0)
    second = plan(shape, Observed((worker,)), first.status, 2.0)
    assert CreateSpare(1) in first.actions
    assert CreateSpare(1) in second.actions
    agent = AgentState("u", "gpt-01234-s1-1", -1, 0, launcher=True)
    there = PodView("gpt-01234-s1-1", -1, 1, "Running", ip="10.0.0.1", agent=agent, agent_age=0.1, spare=1)
    third = plan(shape, Observed((worker, there)), second.status, 3.0)
    assert not [a for a in third.actions if isinstance(a, CreateSpare | DeletePod)]
    assert third.status.spares_ready == 1


@pytest.mark.parametrize("seed", range(40))
def test_random_faults_with_spares_never_break_a_promise(seed: int):
    print(f"seed {seed}")
    rng = random.Random(seed)
    shape = job(
        rng.choice([1, 2, 3, 4]), rng.choice([1, 2]), parity=rng.choice([0, 1]), spares=rng.choice([1, 2]),
        restart_limit=1000, no_progress_limit=50,
    )  # fmt: skip
    world = World(shape, steps=60, seed=seed)
    world.lose_actions = rng.choice([0.0, 0.1, 0.3])
    world.live(rng, _random_fault)
    world.finish()
    assert (world.status.phase, world.status.reached) == ("Succeeded", 59), world.status.message
    numbers = [w.spare for w in world.status.workers if w.spare] + [s.number for s in world.status.spares]
    assert len(numbers) == len(set(numbers)), "a spare is in two places"


def _random_fault(world: World, rng: random.Random) -> None:
    index = rng.randrange(world.job.replicas)
    fault = rng.choice(["rank", "delete", "force", "dark", "spare", "dark spare"])
    idle = [p for p in world.pods.values() if p.spare and p.index < 0]
    if fault == "rank":
        world.kill_rank(index, rng.randrange(world.job.processes))
    elif fault == "delete":
        world.delete_pod(index)
    elif fault == "force":
        world.delete_pod(index, force=True)
    elif fault == "dark" and world.job.replicas > 1:
        world.power_off(index)
    elif fault == "spare" and idle:
        del world.pods[rng.choice(idle).name]
    elif fault == "dark spare" and idle:
        rng.choice(idle).dark = world.now
