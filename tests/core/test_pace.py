"""The interval of snapshots in a job's life: said once, changed for a reason, in force from an attempt's first step."""

from __future__ import annotations

from dataclasses import replace

from holdfast_core.interval import Auto, Seconds, Steps
from holdfast_core.planner import Emit, Observed, Send, Status, plan, reasons

from .world import World
from .world_parts import job


def intervals(world: World) -> list[int]:
    """Intervals in force, one a pod."""
    return [world.pod(i).every for i in range(world.job.replicas)]


def changes(world: World) -> list[int | None]:
    """What `interval` commands said, in their order."""
    return [c.every for c in world.orders if c.kind == "interval"]


def watch(world: World) -> list[str]:
    """Collects the events on the interval from now on."""
    seen: list[str] = []
    apply = world._apply

    def note(action: object) -> None:
        if isinstance(action, Emit) and action.reason == reasons.SNAPSHOT_INTERVAL:
            seen.append(action.message)
        apply(action)

    world._apply = note  # type: ignore[method-assign]
    return seen


def test_steps_that_the_user_named_hold_from_the_first_step_and_need_no_further_word():
    world = World(job(every=Steps(5)))
    world.run(lambda w: w.status.stage == "running")
    assert intervals(world) == [5, 5, 5]
    assert world.status.step < 0
    world.finish()
    assert changes(world) == []
    assert world.durable() == 39


def test_a_lost_pods_successor_has_it_from_its_first_step_too():
    world = World(job(every=Steps(5)))
    world.run_to_step(12)
    world.delete_pod(1, force=True)
    world.run(lambda w: w.status.recoveries == 1)
    assert intervals(world) == [5, 5, 5]
    assert changes(world) == []
    assert world.status.last_recovery.step % 5 == 4


def test_what_is_measured_reaches_every_sidecar_by_one_order_with_an_event_that_explains():
    world = World(job(every=Auto()), steps=400)
    events = watch(world)
    world.run_to_step(3)
    assert intervals(world) == [1, 1, 1]
    assert world.status.interval.reason == "every step until the cost of a snapshot has been measured"
    world.step_seconds, world.cost_seconds = 0.25, 1e-6
    world.run_to_step(120)
    assert changes(world) == [4]
    assert intervals(world) == [4, 4, 4]
    assert len(events) == 1
    assert events[0].startswith(
        "from 1 to 4 steps: every 4 steps, 1 s: a snapshot costs training 0.001 ms, a step takes 250 ms"
    )
    assert "no failure in" in events[0]


def test_failures_shorten_it():
    world = World(job(every=Auto(max_seconds=100.0), restart_limit=100, no_progress_limit=100), steps=4000)
    world.step_seconds, world.cost_seconds = 0.25, 0.001
    world.run_to_step(1500)
    calm = world.status.interval.steps
    assert calm == 128  # 42 s of sqrt(2 * 1 ms * 10 d)
    for index in (0, 1, 2):
        before = world.status.recoveries
        world.kill_rank(index)
        world.run(lambda w, before=before: w.status.recoveries > before)
    world.run_to_step(world.status.step + 3)
    assert world.status.interval.steps < calm / 2
    assert "3 failures in" in world.status.interval.reason
    assert intervals(world) == [world.status.interval.steps] * 3


def test_a_pod_that_is_drained_counts_as_one_failure():
    world = World(job(every=Auto()))
    world.run_to_step(8)
    world.delete_pod(1)
    world.run(lambda w: w.status.recoveries == 1)
    assert len(world.status.failures) == 1


def test_a_fault_during_a_recovery_is_part_of_it():
    world = World(job(every=Auto()))
    world.run_to_step(8)
    world.delete_pod(1, force=True)
    world.run(lambda w: w.status.stage == "gathering")
    world.delete_pod(2, force=True)
    world.run(lambda w: w.status.recoveries == 1)
    assert len(world.status.failures) == 1


def test_a_change_of_the_spec_reaches_a_running_job():
    world = World(job(every=Steps(4)), steps=400)
    events = watch(world)
    world.run_to_step(5)
    world.job = replace(world.job, every=Seconds(4.0))
    world.tick()
    assert intervals(world) == [4, 4, 4], "nothing is measured yet: as it was"
    world.step_seconds, world.cost_seconds = 0.25, 0.0
    world.run_to_step(12)
    assert intervals(world) == [16, 16, 16]
    world.job = replace(world.job, every=Steps(3))
    world.tick()
    assert intervals(world) == [3, 3, 3]
    assert [e.partition(":")[0] for e in events] == ["from 4 to 16 steps", "from 16 to 3 steps"]


def test_a_lost_order_is_given_again():
    world = World(job(every=Steps(2)))
    world.run_to_step(3)
    world.job, world.lose_actions = replace(world.job, every=Steps(8)), 1.0
    world.tick()
    assert intervals(world) == [2, 2, 2]
    world.lose_actions = 0.0
    world.tick()
    assert intervals(world) == [8, 8, 8]


def test_it_stays_in_force_while_nobody_plans():
    world = World(job(every=Steps(2)))
    world.run_to_step(3)
    world.cost_seconds = 5.0
    for _ in range(20):
        world.tick(operator=False)
    assert intervals(world) == [2, 2, 2]


def test_new_digits_change_nothing_that_is_written():
    world = World(job(every=Auto()), steps=4000)
    world.step_seconds, world.cost_seconds, world.capture = 0.25, 0.001, "lazy, 1 thread: cost 1.5%"
    world.run_to_step(1500)
    before = world.status
    world.step_seconds, world.cost_seconds, world.capture = 0.26, 0.0011, "lazy, 1 thread: cost 1.6%"
    world.run_to_step(1530)
    assert (world.status.interval, world.status.capture) == (before.interval, before.capture)
    world.capture = "sync: lazy cost 7%"
    world.run_to_step(1532)
    assert world.status.capture == "sync: lazy cost 7%"


def test_a_sidecar_that_knows_no_interval_is_left_alone():
    world = World(job(every=Steps(8)))
    world.run_to_step(3)
    pods = tuple(world._view(p) for p in world.pods.values())
    old = tuple(replace(p, agent=replace(p.agent, every=None)) for p in pods if p.agent)
    decided = plan(world.job, Observed(old), world.status, world.now)
    assert [a for a in decided.actions if isinstance(a, Send)] == []
    assert decided.status.interval.steps == 1, "its ranks take every step, so the others must too"


def test_a_sidecar_that_missed_the_order_is_told_before_there_is_another_one():
    world = World(job(every=Steps(8)))
    world.run_to_step(3)
    world.pod(2).every, world.job = 2, replace(world.job, every=Steps(16))
    pods = tuple(world._view(p) for p in world.pods.values())
    decided = plan(world.job, Observed(pods), world.status, world.now)
    assert [(a.pod, a.command.every) for a in decided.actions if isinstance(a, Send)] == [(world.pod(0).name, 8)]
    assert decided.status.interval.steps == 8
    world.tick()
    world.tick()
    assert intervals(world) == [16, 16, 16]


def test_an_operator_that_takes_over_from_one_that_knew_no_interval():
    world = World(job(every=Steps(8)))
    world.run_to_step(3)
    world.status = replace(world.status, interval=None)
    assert isinstance(world.status, Status)
    for pod in world.pods.values():
        pod.every = 0
    world.tick()
    assert intervals(world) == [8, 8, 8]
