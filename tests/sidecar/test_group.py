"""Several real sidecars with mTLS: attempts, commits in memory and in stores, restores from each level."""

from __future__ import annotations

from pathlib import Path

from holdfast_core import local
from holdfast_core.config import StoreConfig
from holdfast_core.messages import Source
from holdfast_core.timeline import Copy

from .conftest import MakeJob
from .images import content, read_content


def pvc(folder: Path, **more: object) -> StoreConfig:
    return StoreConfig("pvc", f"file://{folder}/pvc", **({"every_steps": 1} | more))  # type: ignore[arg-type]


def test_steps_are_committed_when_every_rank_has_them(make_job: MakeJob) -> None:
    job = make_job(pods=2, processes=2)
    job.begin()
    job.run(0, 3)
    job.pods[0].trainers[0].snapshot(4)
    state = job.sidecars[1].state()
    assert state.committed == Copy(3, 1)
    assert {r: max(c) for r, c in state.sealed.items()} == {2: Copy(3, 1), 3: Copy(3, 1)}


def test_restart_in_place_resumes_from_memory(make_job: MakeJob) -> None:
    job = make_job(pods=2)
    job.begin()
    job.run(0, 2)
    job.pods[1].launcher.end(0, None, 9)
    job.wait(lambda s: s.index == 0 or s.ranks[0].signal == 9, "exit seen")
    job.begin(Source("memory", 2, 1))
    for rank, pod in enumerate(job.pods):
        attached = pod.trainers[0].attached
        assert isinstance(attached, local.Attached)
        assert read_content(attached.path, attached.slot) == (Copy(2, 1), content(rank, 2, 100_000))
    job.run(3, 5)
    assert job.sidecars[0].state().committed == Copy(5, 2)


def test_a_new_pod_restores_from_the_store(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=2, stores=(pvc(folder),))
    job.begin()
    job.run(0, 3)
    job.stored("pvc", 3)
    for pod in job.pods:
        pod.sidecar.kill()
        for path in (folder / f"p{pod.sidecar.config.index}" / "arena").iterdir():
            path.unlink()
        (folder / f"p{pod.sidecar.config.index}" / "run" / "state.json").unlink()
        pod.launcher.restart()
        pod.sidecar.start()
    inventory = job.sidecars[0].inventory()
    newest = max(inventory.stores[0].copies)
    assert newest == Copy(3, 1)
    job.begin(Source("pvc", newest.step, newest.attempt))
    for rank, pod in enumerate(job.pods):
        attached = pod.trainers[0].attached
        assert isinstance(attached, local.Attached)
        assert read_content(attached.path, attached.slot) == (newest, content(rank, 3, 100_000))
    job.run(4, 5)
    job.stored("pvc", 5)
