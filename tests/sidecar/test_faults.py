"""Faults on real processes: killed sidecars, lying memory, stores that fail and heal, pods that are told to go."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holdfast_core import arena, local, wire
from holdfast_core.config import SidecarConfig, StoreConfig
from holdfast_core.messages import Source
from holdfast_core.timeline import Copy

from .conftest import MakeJob
from .harness import UID, Sidecar, eventually, free_port
from .images import flip, map_file
from .jobs import pvc, restored

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("victim", [0, 1])
def test_training_goes_on_while_a_sidecar_is_killed_and_comes_back(make_job: MakeJob, folder: Path, victim: int) -> None:
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin()
    job.run(0, 2)
    sidecar = job.sidecars[victim]
    sidecar.kill()
    buf = map_file(next((folder / f"p{victim}" / "arena").iterdir()))
    assert arena.committed(buf) == 2
    job.pods[1 - victim].trainers[0].snapshot(3)
    sidecar.start()
    state = sidecar.state()
    assert (state.attempt, state.phase, state.committed) == (1, "running", Copy(2, 1))
    job.wait(lambda s: s.launcher and s.ranks[0].state == "running", "launcher is back")
    job.pods[victim].train(1)
    job.pods[victim].trainers[0].reserve()
    job.pods[victim].trainers[0].snapshot(3)
    job.committed(3)
    job.run(4, 5)
    job.stored("pvc", 5)
    assert len(job.pods[victim].launcher.processes) == 1


def test_a_sidecar_killed_in_the_middle_of_a_preparation_finishes_it(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin(size=3_000_000)
    job.run(0, 1)
    job.stored("pvc", 1)
    for path in (folder / "p1" / "arena").iterdir():
        path.unlink()
    job.pods[1].sidecar.kill()
    job.pods[1].sidecar.start()
    command = job.command(Source("pvc", 1, 1))
    for sidecar in job.sidecars:
        sidecar.order(command)
    job.pods[1].sidecar.kill()
    job.pods[1].sidecar.start()
    job.wait(lambda s: s.phase == "prepared" and s.attempt == 2, "prepared")
    job.launch(size=3_000_000)
    restored(job, Copy(1, 1), 3_000_000)


@pytest.mark.parametrize("fault", ["data", "manifest", "header", "truncate", "gone"])
def test_lying_memory_fails_the_preparation_and_the_store_serves(make_job: MakeJob, folder: Path, fault: str) -> None:
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin()
    job.run(0, 2)
    job.stored("pvc", 2)
    (path,) = (folder / "p1" / "arena").iterdir()
    buf = map_file(path)
    slot = next(s for i in range(3) if (s := arena.read_slot(buf, i)).step == 2)
    start = arena.read_header(buf).region(slot.index)
    del buf
    if fault == "truncate":
        os.truncate(path, start + 10)
    elif fault == "gone":
        os.truncate(path, 0)
    else:
        flip(path, {"data": start + 777, "manifest": start + slot.data_bytes + 30, "header": 17}[fault])
    source = Source("memory", 2, 1)
    command = job.command(source)
    for sidecar in job.sidecars:
        sidecar.order(command)
    liar = job.sidecars[1]
    eventually(lambda: liar.state().phase == "failed", 15, "prepare fails")
    state = liar.state()
    assert state.error_source == dataclasses.replace(source, rank=1), "the other ranks' part is as good as before"
    assert state.error.startswith("rank 1:")
    assert {"data": "model.weight: checksum", "manifest": "manifest checksum", "header": "header",
            "truncate": "cut short", "gone": "cut short"}[fault] in state.error  # fmt: skip
    assert Copy(2, 1) not in state.sealed[1]
    job.begin(Source("pvc", 2, 1))
    restored(job, Copy(2, 1))
    job.run(3, 4)


def test_a_store_that_lies_fails_the_preparation(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1, stores=(pvc(folder),))
    job.begin()
    job.run(0, 1)
    job.stored("pvc", 1)
    path = folder / "pvc" / "step-00000001.a0001" / "rank-00000.safetensors"
    flip(path, path.stat().st_size - 5)
    source = Source("pvc", 1, 1)
    (sidecar,) = job.sidecars
    for file in (folder / "p0" / "arena").iterdir():
        os.truncate(file, 0)
    job.prepare(source, "failed")
    state = sidecar.state()
    assert state.error_source == dataclasses.replace(source, rank=0)
    assert "step-00000001.a0001/rank-00000.safetensors: checksum mismatch" in state.error
    assert state.sealed == {0: ()}
    job.begin(Source("pvc", 0, 1))
    restored(job, Copy(0, 1))


def test_a_corrupt_snapshot_is_never_uploaded(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(StoreConfig("pvc", f"file://{folder}/pvc"),))
    job.begin()
    job.run(0, 1)
    trainer = job.pods[1].trainers[0]
    assert trainer._buf is not None
    slot = next(s for i in range(3) if (s := arena.read_slot(trainer._buf, i)).step == 1)
    trainer._buf[arena.read_header(trainer._buf).region(slot.index) + 50] ^= 1
    job.order("persist")
    eventually(lambda: "rank 1: model.weight: checksum mismatch" in job.sidecars[0].log(), 10, "refused")
    assert not (folder / "pvc" / "step-00000001.a0001" / "manifest.json").exists()
    eventually(lambda: job.sidecars[1].state().sealed == {1: (Copy(0, 1),)})
    job.run(2, 3)
    job.order("persist")
    job.stored("pvc", 3)


# --- planned ends


def test_persist_works_after_the_trainers_died(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(pvc(folder, every_steps=None, every_seconds=3600.0),))
    job.begin()
    job.run(0, 0)
    job.stored("pvc", 0)
    job.run(1, 4)
    job.order("stop", grace_seconds=0.0)
    job.wait(lambda s: s.phase == "exited", "stopped")
    for _ in range(3):
        job.order("persist")
    job.stored("pvc", 4)
    job.order("finish")
    job.wait(lambda s: s.phase == "finished", "finished")
    for pod in job.pods:
        eventually(lambda p=pod: p.launcher.finished == 0)
    start = time.monotonic()
    assert [s.terminate() for s in job.sidecars] == [0, 0]
    assert time.monotonic() - start < 15


def test_pods_that_are_told_to_go_save_the_newest_step_first(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(pvc(folder, every_steps=None, every_seconds=3600.0),))
    job.begin(size=2_000_000)
    job.run(0, 3)
    job.stored("pvc", 0)
    for sidecar in reversed(job.sidecars):
        assert sidecar.process
        sidecar.process.terminate()
    codes = [s.process.wait(25) for s in job.sidecars if s.process]
    assert codes == [0, 0], job.sidecars[0].log()
    assert (folder / "pvc" / "step-00000003.a0001" / "manifest.json").exists()


def test_a_member_that_died_without_a_word_is_told_again(make_job: MakeJob) -> None:
    """A trainer is killed between publishing a snapshot and telling us."""
    job = make_job(pods=2)
    job.begin()
    job.run(0, 1)
    for pod in job.pods:
        trainer = pod.trainers[0]
        trainer.line.send = lambda *_: None  # type: ignore[method-assign]
        trainer.snapshot(2)
        pod.launcher.end(0, None, 9)
    job.committed(2)


def test_uploads_never_cost_a_snapshot(make_job: MakeJob, folder: Path) -> None:
    """Two stores, every step, three slots: the writer always finds one."""
    stores = tuple(StoreConfig(n, f"file://{folder}/{n}", every_steps=1, keep=2) for n in ("a", "b"))
    job = make_job(pods=2, stores=stores)
    job.begin()
    for step in range(40):
        for pod in job.pods:
            assert pod.trainers[0].snapshot(step) >= 0
        job.committed(step)
    job.order("persist")
    job.stored("a", 39)
    job.stored("b", 39)
    assert len([p for p in (folder / "a").iterdir() if p.name.startswith("step-")]) == 2


def test_an_old_attempts_upload_does_not_finish_a_new_one(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin(size=4_000_000)
    for step in range(3):
        job.step(step)
    job.committed(2)
    job.begin(Source("memory", 1, 1), size=4_000_000)
    job.step(2)
    job.committed(2)
    job.stored("pvc", 2)
    copies = max(job.sidecars[0].inventory().stores[0].copies)
    assert copies == Copy(2, 2)
    assert Copy(2, 1) not in job.sidecars[0].state().sealed[0]
    assert dataclasses.astuple(job.sidecars[0].state().committed or Copy(0, 0)) == (2, 2)


def test_reserve_larger_grows_while_training_goes_on(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1)
    job.begin()
    job.run(0, 1)
    trainer = job.pods[0].trainers[0]
    trainer.size = 500_000
    assert isinstance(trainer.reserve(), local.Reserved)
    assert len(list((folder / "p0" / "arena").iterdir())) == 2
    job.run(2, 3)
    eventually(lambda: len(list((folder / "p0" / "arena").iterdir())) == 1)
    job.begin(Source("memory", 3, 1), size=500_000)
    restored(job, Copy(3, 1), 500_000)


def test_a_frozen_coordinator_is_noticed_and_waited_for(make_job: MakeJob, folder: Path) -> None:
    """Its connections stay open, as with a node that lost its power: only the heartbeat tells."""
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin()
    job.run(0, 1)
    coordinator, member = job.sidecars
    assert coordinator.process
    coordinator.process.send_signal(signal.SIGSTOP)
    job.pods[1].trainers[0].snapshot(2)
    eventually(lambda: "no connection to the coordinator" in member.log(), 15, "noticed")
    assert member.state().phase == "running"
    coordinator.process.send_signal(signal.SIGCONT)
    job.pods[0].trainers[0].snapshot(2)
    job.committed(2)
    job.run(3, 4)
    job.stored("pvc", 4)


def test_a_lost_record_fails_the_attempt_in_plain_words(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1)
    job.begin()
    job.run(0, 2)
    (sidecar,) = job.sidecars
    sidecar.kill()
    (folder / "p0" / "run" / "state.json").write_text('{"job_uid": 5')
    sidecar.start()
    state = sidecar.state()
    assert (state.attempt, state.phase, state.ranks[0].state) == (1, "failed", "lost")
    assert "record of attempt 1 is lost" in state.error
    job.begin(Source("memory", 2, 1))
    restored(job, Copy(2, 1))
    job.run(3, 3)


def test_a_restored_step_goes_to_the_stores_that_lack_it(make_job: MakeJob, folder: Path) -> None:
    """Its copy keeps the attempt of its origin, in memory and everywhere."""
    stores = (pvc(folder), StoreConfig("late", f"file://{folder}/late", every_steps=1))
    (folder / "late").write_text("in the way")
    job = make_job(pods=2, processes=2, stores=stores)
    job.begin()
    job.run(0, 2)
    job.stored("pvc", 2)
    for index in (0, 1):
        for path in (folder / f"p{index}" / "arena").iterdir():
            os.truncate(path, 0)
    job.begin(Source("pvc", 2, 1))
    restored(job, Copy(2, 1))
    (folder / "late").unlink()
    job.stored("late", 2)
    assert max(job.sidecars[0].inventory().stores[1].copies) == Copy(2, 1)
    assert (folder / "late" / "attempts" / "00000002.json").exists()
    job.wait(lambda s: all(c == (Copy(2, 1),) for c in s.sealed.values()), "only the restored step is there")


def test_another_pods_trouble_with_a_store_is_told_by_the_coordinator(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(StoreConfig("pvc", f"file://{folder}/pvc"),))
    job.begin()
    job.run(0, 0)
    blocked = folder / "pvc" / "step-00000000.a0001" / "rank-00001.safetensors"
    (blocked / "in the way").mkdir(parents=True)
    job.order("persist")
    eventually(lambda: "rank 1: cannot write to" in job.sidecars[0].state().stores[0].error, 10, "told")
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    job.stored("pvc", 0)
    job.wait(lambda s: s.stores[0].error == "", "healed")


def test_it_runs_as_anybody_with_nothing_of_its_own(folder: Path) -> None:
    """As in the image: a user without a home, no PATH, nothing writable but the shared volume and the stores."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    config = SidecarConfig(
        UID, "gpt", "default", "gpt-0", 0, 0, 1, 1, slot_bytes=1 << 16, shared_dir=str(folder / "p"), tls_dir="",
        metrics_port=free_port(), stores=(pvc(folder), StoreConfig("s3", "s3://b/x", env_prefix="X_")),
    )  # fmt: skip
    folder.chmod(0o777)
    sidecar = Sidecar(config, log=folder / "log")
    environment = {"HOLDFAST_CONFIG": wire.dumps(config).decode(), "X_AWS_ACCESS_KEY_ID": "x", "X_AWS_SECRET_ACCESS_KEY": "y",
                   "X_AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    with (folder / "log").open("wb") as log:
        sidecar.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast_sidecar"], env=environment, stderr=log, user=65532, group=65532,
            extra_groups=(), umask=0o077, cwd="/",
        )  # fmt: skip
    try:
        eventually(lambda: sidecar.health()[0] == 200, 20, "healthy")
        eventually(lambda: "cannot reach http://127.0.0.1:9" in sidecar.state().stores[1].error, 20, "s3 is told")
        assert sidecar.state().stores[0].error == ""
        shared = folder / "p"
        for path, mode in {"arena": 0o777, "arena/rank-00000.g0.arena": 0o666, "run/agent.sock": 0o666,
                           "lib/holdfast_core/arena.py": 0o644, "lib/holdfast": 0o755, "lib": 0o755}.items():  # fmt: skip
            assert stat.S_IMODE((shared / path).stat().st_mode) == mode, path
        assert "Traceback" not in sidecar.log()
    finally:
        sidecar.close()


def test_a_sidecar_that_is_restarted_before_the_first_snapshot_still_takes_it(make_job: MakeJob) -> None:
    job = make_job(2)
    job.begin()
    for pod in job.pods:
        for trainer in pod.trainers:
            trainer.close()
        pod.sidecar.kill()
        pod.sidecar.start()
    job.wait(lambda s: s.phase == "running" and s.launcher, "running again")
    for pod in job.pods:
        pod.train(job.attempt)
    job.run(0, 1)  # the arenas were made by the second sidecar, for the attempt that is on
