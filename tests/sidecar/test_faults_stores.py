"""Stores in trouble: training goes on, it is told within seconds, and heals."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from holdfast_core.config import StoreConfig
from holdfast_core.messages import Source

from .conftest import MakeJob, S3Server
from .harness import tmpfs
from .jobs import pvc, restored


def test_a_broken_store_is_told_within_seconds_and_heals(make_job: MakeJob, folder: Path) -> None:
    (folder / "pvc").write_text("a file where the folder should be")
    job = make_job(pods=2, stores=(pvc(folder), StoreConfig("ok", f"file://{folder}/ok", every_steps=1)), slots=4)
    job.wait(lambda s: "pvc" in s.stores[0].error, "error is told", 5)
    job.begin()
    job.run(0, 2)
    job.stored("ok", 2)
    assert 'holdfast_store_up{job_name="gpt",level="pvc",namespace="default"} 0.0' in job.sidecars[0].metrics()
    (folder / "pvc").unlink()
    job.stored("pvc", 2)
    job.wait(lambda s: s.stores[0].error == "", "error is gone", 5)


def test_a_full_volume_stops_nothing_and_is_caught_up(make_job: MakeJob, folder: Path) -> None:
    with tmpfs(folder / "pvc", "2m") as mount:
        job = make_job(pods=1, stores=(pvc(folder, keep=1),))
        (mount / "ballast").write_bytes(bytes(1_950_000))
        job.begin(size=400_000)
        job.run(0, 1)
        job.wait(lambda s: "no space left" in s.stores[0].error and "enlarge" in s.stores[0].error, "ENOSPC is told")
        job.run(2, 6)
        (mount / "ballast").unlink()
        job.stored("pvc", 6)
        job.wait(lambda s: s.stores[0].error == "", "healed")
        job.close()


def test_a_store_that_hangs_blocks_nothing_else(make_job: MakeJob, folder: Path) -> None:
    """A named pipe in place of a manifest: opening it blocks for ever, as a dead NFS server does."""
    os.makedirs(folder / "nfs" / "step-00000001.a0001")
    for name in ("manifest.json", "rank-00000.safetensors"):
        os.mkfifo(folder / "nfs" / "step-00000001.a0001" / name)
    stores = (StoreConfig("nfs", f"file://{folder}/nfs", every_steps=1), pvc(folder))
    job = make_job(pods=1, stores=stores, drain_seconds=1.0)
    job.begin()
    job.run(0, 3)
    job.stored("pvc", 3)
    start = time.monotonic()
    job.run(4, 8)
    job.stored("pvc", 8)
    assert time.monotonic() - start < 20
    assert job.sidecars[0].terminate(30) == 0


@pytest.mark.s3
def test_s3_down_and_back(make_job: MakeJob, folder: Path, s3_server: S3Server) -> None:
    s3 = StoreConfig("s3", "s3://holdfast/team/gpt", every_steps=1, env_prefix="HOLDFAST_S3_")
    job = make_job(pods=2, stores=(s3,), environment=s3_server.environment("HOLDFAST_S3_"))
    job.begin()
    job.run(0, 1)
    job.stored("s3", 1)
    s3_server.stop()
    job.run(2, 4)
    job.wait(lambda s: "cannot reach http://127.0.0.1" in s.stores[0].error, "error is told", 20)
    s3_server.start()
    job.run(5, 6)
    job.stored("s3", 6, 20)
    job.wait(lambda s: s.stores[0].error == "", "healed")
    for pod in job.pods:
        for path in (folder / f"p{pod.sidecar.config.index}" / "arena").iterdir():
            os.truncate(path, 0)
    newest = max(job.sidecars[0].inventory().stores[0].copies)
    job.begin(Source("s3", newest.step, newest.attempt))
    restored(job, newest)


@pytest.mark.s3
def test_a_missing_bucket_is_told_and_heals(make_job: MakeJob, s3_server: S3Server) -> None:
    s3 = StoreConfig("s3", "s3://later/gpt", every_steps=1, env_prefix="X_")
    job = make_job(pods=1, stores=(s3,), environment=s3_server.environment("X_"))
    job.wait(lambda s: "bucket 'later' does not exist" in s.stores[0].error, "told", 8)
    job.begin()
    job.run(0, 1)
    (s3_server.root / "later").mkdir()
    job.stored("s3", 1)
    job.wait(lambda s: s.stores[0].error == "", "healed")


def test_a_missing_secret_is_told(make_job: MakeJob) -> None:
    job = make_job(pods=1, stores=(StoreConfig("s3", "s3://b/gpt", every_steps=1, env_prefix="X_"),))
    job.wait(lambda s: "Secret of store 's3' lacks AWS_ACCESS_KEY_ID" in s.stores[0].error, "told", 10)
