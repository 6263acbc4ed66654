"""The planner as a specification: one story a test, in a miniature world that really keeps (and loses) steps."""

from __future__ import annotations

import random

import pytest
from holdfast_core.interval import Auto, Steps
from holdfast_core.messages import Source
from holdfast_core.planner import Emit, Observed, PodView, Status, plan, reasons
from holdfast_core.planner.types import CreatePod

from .world import World
from .world_parts import job


def test_a_new_job_gets_its_pods_and_finishes():
    world = World(job())
    world.finish()
    assert (world.status.phase, world.status.reached, world.status.attempt) == ("Succeeded", 39, 1)
    assert world.resumed == [None]
    assert world.durable() == 39  # the last step is saved before the pods go
    assert world.status.restarts.process == 0


def test_a_killed_process_resumes_from_memory_and_loses_at_most_one_step():
    world = World(job())
    world.run_to_step(12)
    world.kill_rank(1)
    world.run(lambda w: w.status.recoveries == 1)
    recovery = world.status.last_recovery
    assert (recovery.cause, recovery.level) == (reasons.PROCESS_DIED, "memory")
    assert recovery.lost_steps <= 1
    assert "signal 9" in recovery.message
    assert world.status.restarts.process == 1
    assert {p.incarnation for p in world.pods.values()} == {1}  # no healthy pod is touched
    world.finish()
    assert world.status.phase == "Succeeded"


def test_once_a_failure_is_noted_the_survivors_are_stopped_without_a_pause():
    world = World(job())
    world.run_to_step(12)
    world.kill_rank(1)
    world.run(lambda w: w.status.stage == "gathering")
    assert world.look_again == 0.0
    assert not any(o.kind == "stop" for o in world.orders), "what was decided is kept first"
    world.reconcile()
    assert any(o.kind == "stop" for o in world.orders)


def test_the_source_is_chosen_only_when_no_survivor_can_commit_any_more():
    """Its stop order is lost: what it still commits must not be undone by an older choice."""
    world = World(job(stores=()))
    world.run_to_step(12)
    world.kill_rank(1)
    world.run(lambda w: w.status.stage == "gathering")
    world.lose_actions = 1.0
    for _ in range(8):
        world.reconcile()
        assert world.status.stage == "gathering"
    world.lose_actions = 0.0
    world.reconcile()
    assert any(o.kind == "stop" for o in world.orders)
    world.run(lambda w: w.status.stage == "running")


def test_steps_lost_to_one_failure_are_not_counted_again_for_the_next():
    world = World(job(stores=()), steps=60)
    world.run_to_step(20)
    world.delete_pod(0, force=True)  # no store: everything is lost
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.lost_steps == 21
    world.run_to_step(3)
    world.kill_rank(0)
    world.run(lambda w: w.status.recoveries == 2)
    assert world.status.last_recovery.lost_steps <= 1
    assert world.status.reached >= 20


def test_a_deleted_pod_is_drained_first_and_loses_nothing():
    world = World(job())
    world.run_to_step(12)
    world.delete_pod(2)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.cause == reasons.POD_DELETED
    assert world.status.last_recovery.lost_steps <= 1
    assert world.status.last_recovery.level == "pvc"
    assert world.pod(2).name.endswith("-2-2")  # a new name


def test_a_deleted_pod_is_drained_though_the_end_of_its_processes_is_heard_of_first():
    world = World(job())
    world.run_to_step(12)
    world.kill_rank(2, signal=15)
    for _ in range(2):
        world.tick()
    assert (world.status.stage, world.status.attempt) == ("running", 1)
    world.delete_pod(2)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.cause == reasons.POD_DELETED
    assert (world.status.restarts.process, world.status.restarts.pod) == (0, 1)
    assert world.status.last_recovery.lost_steps <= 1


def test_a_rank_that_was_terminated_by_itself_is_restarted_a_second_later_each_time():
    world = World(job())
    world.run_to_step(12)
    for number in (1, 2):
        before = world.now
        world.kill_rank(1, signal=15)
        world.run(lambda w, wanted=number: w.status.restarts.process == wanted)
        assert world.status.cause.reason == reasons.PROCESS_DIED
        assert 1.0 <= world.now - before < 2.0
        assert world.status.failed_at == pytest.approx(before, abs=0.5), "the wait is a part of the recovery"
        world.run(lambda w, wanted=number: w.status.recoveries == wanted)


def test_a_dark_node_is_replaced_and_costs_no_more_than_was_unsaved():
    world = World(job())
    world.run_to_step(13)
    saved = world.durable()
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    recovery = world.status.last_recovery
    assert recovery.cause == reasons.POD_UNREACHABLE
    assert recovery.step >= saved
    assert recovery.seconds >= world.job.policy.confirm_after  # counted from the silence, not from when it was noticed
    assert world.status.restarts.pod == 1


def test_a_pod_that_was_sent_to_a_node_that_is_dead_too_is_not_waited_for():
    world = World(job())
    world.run_to_step(13)
    world.power_off(1)
    world.run(lambda w: w.pod(1).incarnation == 2)
    sent = world.pod(1)
    sent.node, sent.dark = world.pod(2).node, world.now  # nobody knows yet that this node has no power either
    world.pod(2).dark = world.now
    world.run(lambda w: w.pod(2).incarnation == 2)
    assert world.pod(1).incarnation == 3, "its kubelet will never start it"
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.restarts.pod == 3


def test_all_pods_gone_goes_back_to_the_freshest_store_that_can_be_read():
    world = World(job())
    world.run_to_step(13)
    world.store_error["pvc"] = "Permission denied"
    for index in range(3):
        world.delete_pod(index, force=True)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.level == "s3"
    assert world.status.restarts.job == 1


def test_pods_that_vanish_while_another_drains_are_not_created_again_under_their_old_names():
    world = World(job())
    world.run_to_step(13)
    world.delete_pod(1, grace=60)
    world.run(lambda w: w.status.stage == "draining")
    for index in (0, 2):
        world.delete_pod(index, force=True)
    pods = tuple(world._view(p) for p in world.pods.values())
    orders = plan(world.job, Observed(pods), world.status, world.now).actions
    created = [(a.index, a.incarnation) for a in orders if isinstance(a, CreatePod)]
    assert all(incarnation > 1 for _, incarnation in created), created
    world.run(lambda w: w.status.recoveries == 1)


def test_a_corrupt_source_is_rejected_and_the_next_one_taken():
    world = World(job())
    world.run_to_step(13)
    newest = max(world.stores["pvc"])
    world.stores["pvc"][newest] = False
    for index in range(3):
        world.delete_pod(index, force=True)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.resumed[-2:] == [Source("pvc", newest.step, newest.attempt), Source("s3", newest.step, newest.attempt)]
    world.finish()
    assert world.status.phase == "Succeeded"


def test_it_never_starts_from_scratch_while_a_store_cannot_be_read():
    world = World(job())
    world.store_error["s3"] = "bucket 'x' does not exist: create it"
    for _ in range(200):
        world.tick()
    assert world.status.stage == "gathering"
    assert "bucket 'x' does not exist" in world.status.message
    del world.store_error["s3"]
    world.finish()
    assert world.status.phase == "Succeeded"


def test_a_job_applied_again_goes_on_from_what_the_stores_hold():
    first = World(job())
    first.run_to_step(20)
    again = World(job())
    again.stores, again.records = first.stores, first.records
    again.run(lambda w: w.status.stage == "running")
    assert again.resumed[0].step == first.durable()
    assert again.status.attempt > first.status.attempt


def test_a_script_that_cannot_start_fails_after_the_no_progress_limit_with_its_last_words():
    world = World(job(no_progress_limit=3))
    for _ in range(3):
        world.run(lambda w: all(r.state == "running" for p in w.pods.values() for r in p.ranks) and len(w.pods) == 3)
        world.kill_rank(0, signal=None, code=2)
        world.reconcile()
    world.finish()
    assert world.status.phase == "Failed"
    assert world.status.message.startswith(reasons.NO_PROGRESS)
    assert "code 2" in world.status.message


def test_failures_with_progress_in_between_are_not_lack_of_progress():
    world = World(job(no_progress_limit=2), steps=60)
    for step in (5, 15, 25, 35):
        world.run_to_step(step)
        world.kill_rank(0)
        world.run(lambda w, n=world.status.recoveries: w.status.recoveries == n + 1)
    world.finish()
    assert (world.status.phase, world.status.recoveries) == ("Succeeded", 4)


def test_the_windowed_limit_ends_the_job():
    world = World(job(restart_limit=2), steps=80)
    for step in (5, 15, 25):
        world.run_to_step(step)
        world.kill_rank(0)
        world.run(lambda w, n=world.status.recoveries: w.status.recoveries == n + 1 or w.status.terminal)
    assert world.status.message.startswith(reasons.RESTART_LIMIT)
    world.tick()
    assert {p.kube for p in world.pods.values()} == {"Failed"}  # stopped, kept for their logs


def test_a_hang_is_seen_by_lack_of_progress():
    world = World(job(hang_deadline=5.0))
    world.run_to_step(5)
    seen = plan(world.job, Observed(tuple(world._view(p) for p in world.pods.values())), world.status, world.now)
    assert seen.status.stage == "running"
    idle = [_idle(world._view(p), 6.0) for p in world.pods.values()]
    seen = plan(world.job, Observed(tuple(idle)), world.status, world.now)
    assert seen.status.cause.reason == reasons.HANG
    assert any("idle for 6 s" in line for line in seen.status.cause.evidence)


def _idle(view: PodView, seconds: float) -> PodView:
    from dataclasses import replace

    ranks = tuple(replace(r, idle_seconds=seconds) for r in view.agent.ranks)
    return replace(view, agent=replace(view.agent, ranks=ranks))


def test_training_goes_on_while_the_operator_is_down_and_is_adopted_afterwards():
    world = World(job())
    world.run_to_step(5)
    for _ in range(10):
        world.tick(operator=False)
    saved = world.durable()
    world.run_to_step(16)
    assert saved >= 10
    assert (world.status.attempt, world.status.restarts.process) == (1, 0)


def test_a_pass_without_change_orders_nothing_that_is_not_idempotent():
    world = World(job())
    world.run_to_step(5)
    observed = Observed(tuple(world._view(p) for p in world.pods.values()))
    first = plan(world.job, observed, world.status, world.now)
    second = plan(world.job, observed, first.status, world.now)
    assert [a for a in second.actions if isinstance(a, Emit | CreatePod)] == []
    assert second.status == first.status


def test_silence_of_all_pods_is_not_taken_for_their_death():
    world = World(job())
    world.run_to_step(5)
    for index in range(3):
        world.power_off(index)
    for _ in range(int(30 / 0.25)):
        world.tick()
    assert {p.incarnation for p in world.pods.values()} == {1}  # it may be the operator who is cut off


def test_waiting_pods_are_explained():
    pod = PodView("gpt-01234-0-1", 0, 1, waiting='ErrImagePull: image "x" not found')
    decided = plan(job(replicas=1), Observed((pod,)), Status(), 1.0)
    condition = next(c for c in decided.status.conditions if c.type == reasons.PODS_READY)
    assert (condition.reason, condition.status) == ("ErrImagePull", False)
    assert 'image "x" not found' in condition.message
    assert any(isinstance(a, Emit) and a.reason == "ErrImagePull" and a.warning for a in decided.actions)


@pytest.mark.parametrize("seed", range(60))
def test_random_faults_and_lost_orders_never_break_a_promise(seed):
    """Liveness and I1-I3 under random faults, with orders lost on the way (the operator dying half way looks the same)."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    every = rng.choice([Steps(), Steps(3), Auto(max_seconds=5.0)])
    shape = job(rng.choice([1, 2, 3, 4]), rng.choice([1, 2]), every=every, restart_limit=1000, no_progress_limit=50)
    world = World(shape, steps=60, seed=seed)
    world.step_seconds, world.cost_seconds = 0.25, 0.001
    world.lose_actions = rng.choice([0.0, 0.1, 0.3])
    world.live(rng, _random_fault)
    world.store_error.clear()
    world.finish()
    assert world.status.phase == "Succeeded", world.status.message
    assert world.status.reached == 59


def _random_fault(world: World, rng: random.Random) -> None:
    index = rng.randrange(world.job.replicas)
    durable = world.durable()
    fault = rng.choice(["rank", "delete", "force", "dark", "all", "store", "operator"])
    if fault == "rank":
        world.kill_rank(index, rng.randrange(world.job.processes), signal=rng.choice([9, 11]))
    elif fault == "delete":
        world.delete_pod(index)
    elif fault == "force":
        world.delete_pod(index, force=True)
    elif fault == "dark" and world.job.replicas > 1:
        world.power_off(index)
    elif fault == "all":
        for i in range(world.job.replicas):
            world.delete_pod(i, force=True)
    elif fault == "store":
        world.store_error[rng.choice(["pvc", "s3"])] = "connection refused"
    assert world.durable() >= durable
