"""Stories of jobs whose pods protect each other: what the planner does when nodes die, in the miniature world."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from holdfast_core.messages import Replication
from holdfast_core.planner import Observed, plan, reasons
from holdfast_core.timeline import Copy

from .world import World
from .world_parts import job


def condition(world: World, kind: str = reasons.PROTECTED):
    return next(c for c in world.status.conditions if c.type == kind)


def test_a_dark_node_costs_no_committed_step_and_no_disk():
    world = World(job(stores=(), parity=1))
    world.run_to_step(13)
    assert condition(world).status
    assert world.status.protection.faults == 1
    world.power_off(1)
    world.run(lambda w: w.status.recoveries == 1)
    recovery = world.status.last_recovery
    assert (recovery.level, recovery.lost_steps <= 1) == ("peers", True)
    assert "rank 1 rebuilt from peers' RAM, the others from memory" in world.emitted_text(reasons.RESUMING)
    assert {p.incarnation for p in world.pods.values() if p.index != 1} == {1}, "survivors stay"
    world.finish()
    assert (world.status.phase, world.status.reached) == ("Succeeded", 39)


def test_two_nodes_of_different_groups_at_once():
    world = World(job(replicas=6, stores=(), parity=1, size=3))
    world.run_to_step(13)
    for index in (0, 5):
        world.power_off(index)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.level == "peers"
    assert world.status.restarts.pod == 2


def test_a_second_node_while_the_first_is_being_replaced():
    world = World(job(replicas=4, parity=1))
    world.run_to_step(13)
    world.power_off(1)
    world.run(lambda w: w.status.stage in ("gathering", "preparing"))
    world.power_off(2)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.level == "pvc", "two of one group are more than its parity"
    world.finish()
    assert world.status.phase == "Succeeded"


def test_more_losses_than_parity_fall_to_the_freshest_store():
    world = World(job(replicas=4, parity=1))
    world.run_to_step(13)
    world.store_error["pvc"] = "Permission denied"
    for index in (0, 3):
        world.power_off(index)
    world.run(lambda w: w.status.recoveries == 1)
    assert (world.status.last_recovery.level, world.status.last_recovery.step) == ("s3", 10)


def test_a_deleted_pod_that_peers_can_rebuild_is_replaced_without_a_detour_to_a_store():
    world = World(job(parity=1))
    world.run_to_step(13)
    before = dict(world.stores["pvc"])
    world.delete_pod(2)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.level == "peers"
    assert not [c for c in world.stores["pvc"] if c not in before and c.attempt == 1 and c.step % 5]


def test_without_a_store_a_deleted_pod_goes_when_its_newest_step_is_in_peers_ram():
    world = World(job(stores=(), parity=1), steps=60)
    world.run_to_step(13)
    world.keeps_up = 0.0
    world.run_to_step(15)
    world.delete_pod(2, grace=60)
    world.run(lambda w: w.status.stage == "draining")
    group = [p for p in world.pods.values() if p.incarnation == 1]
    newest = max(frozenset.intersection(*(frozenset(r.sealed) for p in group for r in p.ranks)))
    world._protect(group, newest)
    world.run(lambda w: w.status.recoveries == 1)
    assert (world.status.last_recovery.level, world.status.last_recovery.step) == ("peers", newest.step)


def test_all_pods_deleted_still_go_to_the_stores_first():
    world = World(job(parity=1))
    world.run_to_step(13)
    for index in range(3):
        world.delete_pod(index)
    world.run(lambda w: w.status.recoveries == 1)
    assert world.status.last_recovery.level == "pvc"
    assert world.status.last_recovery.lost_steps <= 1


def test_a_job_is_unprotected_between_a_loss_and_the_new_parity_and_says_so():
    world = World(job(parity=1))
    world.run_to_step(13)
    world.power_off(1)
    world.keeps_up = 0.0
    world.run(lambda w: w.status.recoveries == 1)
    assert not condition(world).status
    assert world.status.protection.faults == 0
    world.keeps_up = 1.0
    world.run(lambda w: condition(w).status)


def test_a_slot_that_its_trainer_refuses_does_not_speak_against_the_peers_that_filled_it():
    """A bit flips between the rebuild and the load: what peers hold is as good as before."""
    world = World(job(stores=(), parity=1))
    world.run_to_step(13)
    world.power_off(2)
    world.run(lambda w: w.status.stage == "running" and w.status.attempt == 2)
    source = world.status.source
    world.pod(2).ranks[0].sealed.clear()
    views = tuple(world._view(p) for p in world.pods.values())
    told = tuple(replace(v, agent=replace(v.agent, ranks=_refusing(v))) if v.name == world.pod(2).name else v for v in views)
    decided = plan(world.job, Observed(told), world.status, world.now)
    assert decided.status.excluded == (replace(source, level="memory", rank=2),)
    again = replace(decided.status, stage="running", excluded=decided.status.excluded, levels={2: "peers"})
    decided = plan(world.job, Observed(told), replace(again, attempt=world.status.attempt), world.now)
    assert replace(source, level="peers", rank=2) in decided.status.excluded, "the same rank refused what was brought anew"


def test_peers_that_are_out_of_reach_for_a_moment_are_asked_again_once():
    world = World(job(parity=1))
    world.run_to_step(13)
    world.power_off(2)
    world.run(lambda w: w.status.stage == "preparing" and w.status.attempt == 2)
    source = replace(world.status.source, rank=2)

    def failing(attempt: int, status):
        views = [world._view(p) for p in world.pods.values()]
        bad = {"attempt": attempt, "phase": "failed", "error": "no answer", "error_source": source, "passing": True}
        told = [replace(v, agent=replace(v.agent, **bad)) if v.name == world.pod(2).name else v for v in views]
        return plan(world.job, Observed(tuple(told)), status, world.now).status

    once = failing(2, world.status)
    assert (once.attempt, once.stage, once.excluded, once.doubted) == (3, "gathering", (), (source,))
    twice = failing(3, replace(once, stage="preparing", source=world.status.source))
    assert (twice.attempt, twice.excluded) == (4, (source,)), (
        "then the next level has its turn; test_planner_reach: if there is one"
    )


def _refusing(view):
    return tuple(replace(r, corrupt="checksum mismatch") for r in view.agent.ranks)


def test_a_protected_step_that_falls_behind_says_who_is_to_blame():
    world = World(job(parity=1))
    world.run_to_step(5)
    world.keeps_up = 0.0
    world.run_to_step(9)
    error = "pod gpt-1: sends bytes that do not match their checksums"
    told = []
    for view in (world._view(p) for p in world.pods.values()):
        failed = Replication(Copy(9, 1), error=error if view.index == 0 else "")
        told.append(replace(view, agent=replace(view.agent, replication=failed)))
    found = plan(world.job, Observed(tuple(told)), world.status, world.now).status.protection
    assert found.faults == 1
    assert found.message.endswith(f"steps behind memory; the last round failed: {error}")


def test_one_pod_has_no_peers_and_is_told_so():
    world = World(job(replicas=1, parity=1))
    world.run_to_step(3)
    assert (condition(world).status, condition(world).reason) == (False, "SinglePod")


def test_two_pods_of_a_group_on_one_node_are_not_protected_against_its_loss():
    world = World(job(replicas=2, parity=1))
    world.run(lambda w: len(w.pods) == 2)
    for pod in world.pods.values():
        pod.node = 7
    world.run_to_step(5)
    assert (condition(world).status, condition(world).reason) == (False, "SharedNode")
    assert "n7 runs more pods of a group than may be lost" in condition(world).message


@pytest.mark.parametrize("seed", range(60))
def test_random_losses_within_the_budget_never_cost_a_protected_step(seed):
    """No store at all: whatever is lost while the job is protected comes from peers, or the job would start over."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    replicas, processes, parity, size = (rng.choice(c) for c in ([2, 3, 4, 6], [1, 2], [1, 1, 2], [2, 3, 4]))
    shape = job(replicas, processes, (), parity=parity, size=size, restart_limit=1000, no_progress_limit=50)
    world = World(shape, steps=60, seed=seed)
    world.keeps_up = rng.choice([1.0, 0.5])
    world.lose_actions = rng.choice([0.0, 0.2])
    for _ in range(rng.randrange(1, 7)):
        world.run(lambda w: (w.status.stage == "running" and (w.status.protection or 0) and w.status.protection.faults)
                  or w.status.terminal, limit=4000)  # fmt: skip
        if world.status.terminal:
            break
        for _ in range(rng.randrange(0, 20)):
            world.tick(operator=rng.random() < 0.8)
        world.reconcile()
        seen = world.status.protection
        if not seen or not seen.faults or world.status.terminal or world.status.stage != "running":
            continue
        before, protected = len(world.resumed), seen.step
        for index in rng.sample(range(shape.replicas), rng.randrange(1, seen.faults + 1)):
            rng.choice([world.power_off, lambda i: world.delete_pod(i, force=True)])(index)
        if rng.random() < 0.5:
            world.kill_rank(rng.choice([p.index for p in world.pods.values() if p.dark is None]), 0)
        world.run(lambda w, n=before: len(w.resumed) > n or w.status.terminal, limit=2000)
        for source in world.resumed[before:]:
            assert source is not None
            assert source.step >= protected
    world.finish()
    assert (world.status.phase, world.status.reached) == ("Succeeded", 59)
