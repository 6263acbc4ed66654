"""One fault after another on a job that trains: the level used, the steps lost, the seconds, the counters."""

from __future__ import annotations

import time

import pytest
from holdfast_core.timeline import Copy
from holdfast_demo import faults, measure, processes, setting
from holdfast_demo.faults import Scene
from holdfast_demo.measure import Outcome
from holdfast_demo.waiting import wait_for

from .copies import committed, newest, written_since
from .site import Say, Shared, Site, recovery, restarts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

IN_PLACE = 60.0  # seconds to the next finished step; wide on purpose: CI machines are noisy, build/e2e/seen.txt has the figures
NEW_POD = 120.0
DEAD_NODE = 90.0


def _kept(outcome: Outcome, before: measure.Before, levels: tuple[str, ...], floor: tuple[str, ...]) -> None:
    problem = measure.judge(outcome, before, levels, floor)
    assert not problem, problem


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_is_restarted_in_place_from_memory(training: Scene, say: Say, rank: int) -> None:
    before, counted = measure.look(training.job), restarts(training)
    pods = {p["metadata"]["uid"] for p in training.job.pods()}
    outcome = recovery(training, say, f"SIGKILL of rank {rank}", before, faults.kill_rank(training, rank), 60)
    _kept(outcome, before, ("memory",), ("memory",))
    assert outcome.lost_steps <= 2, "at most the one that was being copied, and one that was not yet committed"
    assert outcome.seconds < IN_PLACE
    assert restarts(training)["process"] == counted["process"] + 1
    assert restarts(training)["pod"] == counted["pod"]
    assert {p["metadata"]["uid"] for p in training.job.pods()} == pods, "no pod may be touched"
    last = training.job.status["lastRecovery"]
    assert last["reason"] == "ProcessDied"
    assert f"rank {rank} was killed by signal 9" in last["message"]


def test_a_segfault_is_recovered_from_memory_and_named(training: Scene, site: Site, say: Say) -> None:
    before = measure.look(training.job)
    outcome = recovery(training, say, "segfault of rank 1", before, faults.segfault(training, 1), 60)
    _kept(outcome, before, ("memory",), ("memory",))
    assert outcome.seconds < IN_PLACE
    assert "signal 11" in training.job.status["lastRecovery"]["message"]
    site.await_event(training, "ProcessDied", "signal 11")
    site.await_event(training, "Recovered", f"resumed from memory at step {outcome.resumed_step}")


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_sidecar_does_not_interrupt_training_and_keeps_its_memory(training: Scene, say: Say, index: int) -> None:
    """Index 0 is the coordinator of the group, 1 a plain member."""
    before = measure.look(training.job)
    name = training.job.need_pod(index)["metadata"]["name"]
    at = faults.kill_sidecar(training, index)
    outcome = measure.uninterrupted(training.job, f"sidecar {index} killed", before, at, 60, steps=60)
    assert outcome.level == measure.NONE, "training was interrupted"

    def back() -> bool:
        pod = training.job.kube.get("Pod", training.job.namespace, name)
        found = next(s for s in pod["status"]["initContainerStatuses"] if s["name"] == faults.SIDECAR)
        return bool(found["restartCount"] and found["ready"])

    wait_for(back, 60, "the sidecar to be ready again")
    saved = training.job.log.step
    wait_for(lambda: training.job.checkpoint("memory") > saved, 60, "commits to memory after the sidecar's return")
    assert training.job.attempt == before.attempt, "training was interrupted"
    say(f"sidecar {index} killed: next step after {outcome.seconds:.2f} s, attempt {before.attempt} went on")
    before = measure.look(training.job)
    outcome = recovery(training, say, "SIGKILL of a rank after that", before, faults.kill_rank(training, index), 60)
    _kept(outcome, before, ("memory",), ("memory",))


@pytest.mark.parametrize("index", [0, 2])
def test_a_deleted_pod_is_replaced_and_nothing_saved_is_lost(training: Scene, say: Say, index: int) -> None:
    before, counted = measure.look(training.job), restarts(training)
    old = training.job.need_pod(index)["metadata"]["name"]
    outcome = recovery(training, say, f"pod {index} deleted", before, faults.delete_pod(training, index), 120)
    _kept(outcome, before, ("memory", "pvc"), ("memory", "pvc", "s3"))
    assert outcome.lost_steps <= 3, "the newest step is saved while the pod is going"
    assert outcome.seconds < NEW_POD
    new = training.job.need_pod(index)["metadata"]["name"]
    assert new != old, "a new incarnation has a new name"
    assert restarts(training)["pod"] == counted["pod"] + 1
    assert training.job.status["lastRecovery"]["reason"] == "PodDeleted"
    wait_for(lambda: training.job.kube.find("Pod", training.job.namespace, old) is None, 60, f"pod {old} to be gone")


def test_a_dead_operator_in_the_middle_of_a_recovery_does_no_harm(training: Scene, say: Say) -> None:
    before = measure.look(training.job)
    at, stage = faults.kill_operator_in_recovery(training, 1)
    outcome = recovery(training, say, f"operator killed while {stage}", before, at, 120)
    _kept(outcome, before, ("memory",), ("memory",))
    faults.operator_ready(training)


def test_without_an_operator_training_and_saving_go_on(training: Scene, site: Site, say: Say) -> None:
    """I8. What waits is only the reaction: a rank that dies meanwhile is restarted when the operator is back."""
    attempt = training.job.attempt
    faults.scale_operator(training, 0)
    try:
        folders = (site.pvc_folder(training), site.s3_folder(training))
        start = [newest(folder) for folder in folders]
        since = time.time()
        training.job.wait_steps(60, 60, since)
        wait_for(lambda: all(newest(f) > s for f, s in zip(folders, start, strict=True)), 60, "commits to PVC and S3")
        faults.scale_operator(training, 1)
        before = training.job.log.step
        training.job.wait(lambda s: int(s.get("step", -1)) > before, 60, "the status to follow again")
        assert training.job.attempt == attempt, "an operator that comes back must adopt what runs"
        faults.scale_operator(training, 0)
        look = measure.look(training.job)
        at = faults.kill_rank(training, 2)
        assert training.job.attempt == attempt
    finally:
        faults.scale_operator(training, 1)
    outcome = recovery(training, say, "rank killed while there is no operator", look, at, 120)
    _kept(outcome, look, ("memory",), ("memory",))


def _zombies(site: Site, scene: Scene, since: float, attempt: int) -> list[Copy]:
    """Copies that an attempt before `attempt` committed after `since`."""
    found = (*written_since(site.pvc_folder(scene), since), *written_since(site.s3_folder(scene), since))
    return [copy for copy in found if copy.attempt < attempt]


def test_a_powered_off_node_is_replaced_and_may_come_back(training: Scene, site: Site, say: Say) -> None:
    before = measure.look(training.job)
    node = faults.choose_node(training, avoid_rank=None)
    at = faults.power_off(training, node)
    try:
        outcome = recovery(training, say, f"{node} powered off", before, at, 180)
        _kept(outcome, before, ("pvc", "s3"), ("pvc", "s3"))
        assert outcome.seconds < DEAD_NODE
        assert all(faults.node_of(training.job.need_pod(i)) != node for i in range(3))
        resumed, attempt = time.time(), training.job.attempt
    finally:
        faults.power_on(training, node)
    training.job.wait_steps(100, 60, time.time())
    assert training.job.attempt == attempt, "a node that comes back must not disturb"
    assert not _zombies(site, training, resumed, attempt)
    assert not [p for p in training.job.pods() if faults.node_of(p) == node]


def test_a_partitioned_node_can_not_commit(training: Scene, site: Site, say: Say) -> None:
    """Its processes live on and still reach the shared disk: the attempt number fences them."""
    before = measure.look(training.job)
    node = faults.choose_node(training, avoid_rank=None)
    at = time.time()
    site.cluster.call("partition", node)
    try:
        outcome = recovery(training, say, f"{node} partitioned", before, at, 180)
        _kept(outcome, before, ("pvc", "s3"), ("pvc", "s3"))
        resumed, attempt = time.time(), training.job.attempt
        training.job.wait_steps(60, 60, resumed)
    finally:
        site.cluster.call("heal", node)
    wait_for(lambda: site.cluster.nodes_ready().get(node), 90, f"{node} to be Ready again")
    wait_for(lambda: not faults.stale_pods(training), 120, "replaced pods to be gone", seen=lambda: faults.stale_pods(training))
    training.job.wait_steps(60, 60, time.time())
    assert training.job.attempt == attempt, "a node that comes back must not disturb"
    assert not _zombies(site, training, resumed, attempt)


def test_all_pods_gone_and_no_pvc_is_served_by_s3(shared: Shared, site: Site, say: Say) -> None:
    scene = shared.ready(20)
    before, counted = measure.look(scene.job), restarts(scene)
    site.cluster.storage("off")
    try:
        outcome = recovery(scene, say, "all pods deleted, PVC off", before, faults.delete_all_pods(scene), 180)
        _kept(outcome, before, ("s3",), ("s3",))
        assert restarts(scene)["pod"] == counted["pod"] + 3  # and a restart of the job, if they were seen to go in one moment
        found = scene.job.wait_condition("StoresHealthy", False, 30, "pvc")
        assert found["reason"] == "StoreUnavailable"
    finally:
        site.cluster.storage("on")
    scene.job.wait_condition("StoresHealthy", True, 60)
    start = newest(site.pvc_folder(scene))
    wait_for(lambda: newest(site.pvc_folder(scene)) > start, 60, "commits to the PVC again")
    assert committed(site.pvc_folder(scene))


def test_the_processes_die_with_their_pod(training: Scene) -> None:
    """No process of the job outlives its container: what runs is what the pods say."""
    ids = {processes.container_id(p, "trainer") for p in training.job.pods() if p["status"]["phase"] == "Running"}
    assert len(ids) == 3
    assert all(processes.pids_of(i) for i in ids)
    assert setting.operators(training.cluster, training.release)
