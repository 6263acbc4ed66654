"""Levels that lie or fail: corrupt bytes in memory, on the PVC, in S3; a full disk; a store that is away for a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from holdfast_demo import faults, measure, processes
from holdfast_demo.errors import WaitTimeout
from holdfast_demo.faults import Scene
from holdfast_demo.kube import Object
from holdfast_demo.waiting import wait_for

from . import memory
from .copies import committed, flip, newest, shard, truncate
from .site import Say, Shared, Site, recovery, trainer_pids

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@contextmanager
def _frozen(scene: Scene) -> Iterator[list[int]]:
    """All trainers stopped by SIGSTOP, with the same newest step, known to the sidecars, and no copy under way."""
    pids = trainer_pids(scene)

    def stopped() -> bool:
        _signal(pids, signal.SIGSTOP)
        wait_for(lambda: all(_is_stopped(pid) for pid in pids), 10, "all threads stopped", every=0.005)
        step = memory.at_rest(pids)
        with suppress(WaitTimeout):  # a rank that stopped between its seal and the word of it never gets to say it
            if step is not None and wait_for(lambda: memory.committed(pids) == {step}, 2, f"step {step} to be committed"):
                return True
        _signal(pids, signal.SIGCONT)
        return False

    try:
        wait_for(stopped, 60, "a moment in which all ranks have sealed the same step, and said so")
        yield pids
    finally:
        _signal(pids, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # a thread ended in this moment
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _delete_all(scene: Scene, pids: list[int]) -> float:
    """All pods, by force, with their ranks frozen to the end: let go before the kubelet kills them, they did one more step."""
    at = faults.delete_all_pods(scene)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "the frozen ranks to be killed")
    return at


def _settled(site: Site, scene: Scene, pids: list[int]) -> int:
    """Wait until both stores hold the newest step that all (frozen) ranks have in memory; that step."""
    pvc, s3 = site.pvc_folder(scene), site.s3_folder(scene)
    step = max(set.intersection(*(memory.sealed(pid, rank) for rank, pid in enumerate(pids))))

    def saved() -> bool:
        return newest(pvc).step == newest(s3).step == scene.job.checkpoint("pvc") == scene.job.checkpoint("s3") == step

    wait_for(saved, 60, f"step {step} in both stores", seen=lambda: (newest(pvc), newest(s3), scene.job.brief()))
    return step


@pytest.mark.parametrize(("harm", "rank"), [(memory.flip, 0), (memory.flip, 2), (memory.truncate, 1)])
def test_a_corrupt_snapshot_in_memory_is_found_and_the_next_level_serves(
    training: Scene, site: Site, say: Say, harm: Callable[[int, int, int], None], rank: int
) -> None:
    """I2. The newest step is in memory, on the PVC and in S3; the one in memory is no longer what was captured."""
    with _frozen(training) as pids:
        step = _settled(site, training, pids)
        harm(pids[rank], rank, step)
        before = measure.look(training.job)
        at = processes.kill(pids[rank], signal.SIGKILL)
    outcome = recovery(training, say, f"{harm.__name__} in memory of rank {rank}, then SIGKILL", before, at, 90)
    assert outcome.level == "pvc"
    assert outcome.resumed_step == step
    if harm is memory.flip:
        site.await_event(training, "SourceRejected", "checksum")


@pytest.mark.parametrize(("harm", "rank"), [(flip, 2), (truncate, 0)])
def test_a_corrupt_shard_on_the_pvc_is_found_and_s3_serves(
    training: Scene, site: Site, say: Say, harm: Callable[[Path], None], rank: int
) -> None:
    with _frozen(training) as pids:
        step = _settled(site, training, pids)
        pvc = site.pvc_folder(training)
        harm(shard(pvc, newest(pvc), rank))
        before = measure.look(training.job)
        at = _delete_all(training, pids)
    outcome = recovery(training, say, f"{harm.__name__} of a shard on the PVC, all pods deleted", before, at, 120)
    assert outcome.level == "s3"
    assert outcome.resumed_step == step


def test_corrupt_everywhere_goes_back_to_an_older_step(training: Scene, site: Site, say: Say) -> None:
    with _frozen(training) as pids:
        _settled(site, training, pids)
        pvc, s3 = site.pvc_folder(training), site.s3_folder(training)
        flip(shard(pvc, newest(pvc), 1))
        flip(shard(s3, newest(s3), 1))  # of the same rank: a good shard of either store would do
        older = max(committed(pvc)[-2].step, committed(s3)[-2].step)
        before = measure.look(training.job)
        at = _delete_all(training, pids)
    outcome = recovery(training, say, "newest step corrupt on PVC and in S3, all pods deleted", before, at, 120)
    assert outcome.resumed_step == older
    assert training.job.attempt >= before.attempt + 3, "both corrupt copies must have been tried, each by an attempt"
    assert outcome.level in ("pvc", "s3")


def _fill(scene: Scene) -> Object:
    """Fill the shared disk until the job says so: room that a removed step leaves takes the next one, so it is filled again."""

    def told() -> Object | None:
        scene.cluster.storage("full")
        with suppress(WaitTimeout):
            return scene.job.wait_condition("StoresHealthy", False, 5, "pvc")
        return None

    found = wait_for(told, 60, "the job to say that the disk is full", seen=scene.job.brief)
    assert found is not None
    return found


def test_a_full_disk_does_not_stop_training(shared: Shared, site: Site, say: Say) -> None:
    """I5. S3 goes on; the PVC catches up when there is room again."""
    scene = shared.ready()
    attempt = scene.job.attempt
    start = time.time()
    try:
        found = _fill(scene)
        assert "space" in found["message"].lower(), found["message"]
        say(f"PVC full: condition after {time.time() - start:.1f} s: {found['message'][:140]}")
        s3 = newest(site.s3_folder(scene))
        scene.job.wait_steps(60, 60, time.time())
        wait_for(lambda: newest(site.s3_folder(scene)) > s3, 60, "commits to S3 while the disk is full")
    finally:
        site.cluster.storage("free")
    scene.job.wait_condition("StoresHealthy", True, 60)
    pvc = newest(site.pvc_folder(scene))
    wait_for(lambda: newest(site.pvc_folder(scene)) > pvc, 60, "commits to the PVC again")
    assert scene.job.attempt == attempt, "training was interrupted"
    site.await_event(scene, "StoreUnavailable")


def test_s3_away_for_a_while_does_not_stop_training(shared: Shared, site: Site, say: Say) -> None:
    scene = shared.ready()
    attempt = scene.job.attempt
    site.cluster.s3("stop")
    start = time.time()
    try:
        found = scene.job.wait_condition("StoresHealthy", False, 60, "s3")
        say(f"S3 down: condition after {time.time() - start:.1f} s: {found['message'][:140]}")
        pvc = newest(site.pvc_folder(scene))
        scene.job.wait_steps(200, 90, time.time())
        wait_for(lambda: newest(site.pvc_folder(scene)) > pvc, 60, "commits to the PVC while S3 is away")
    finally:
        site.cluster.s3("start")
    up, missed = time.time(), newest(site.s3_folder(scene))
    wait_for(lambda: newest(site.s3_folder(scene)) > missed, 60, "uploads to catch up")
    say(f"S3 back after {up - start:.0f} s: caught up {time.time() - up:.1f} s later")
    scene.job.wait_condition("StoresHealthy", True, 60)
    assert scene.job.attempt == attempt, "training was interrupted"
