"""Names and manifests of the durable levels (PVC, S3): what a store holds and when a step exists in it.

    attempts/00000004.json                       attempt 4 resumed from step r (timeline.Resume)
    step-00001200.a0003/rank-00000.safetensors   rank 0's shard of step 1200, written by attempt 3
    step-00001200.a0003/manifest.json            written last: without it the step does not exist

The attempt is part of the name, so no attempt can overwrite another's files; `timeline.is_valid` then decides which
count. Readers verify size and checksum of each shard against the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .timeline import Copy, History, Resume, is_valid

MANIFEST = "manifest.json"
ATTEMPTS = "attempts"
_STEP = re.compile(r"^step-(\d{8,})\.a(\d{4,})$")
_ATTEMPT = re.compile(r"^(\d{8})\.json$")


@dataclass(frozen=True)
class ShardTensor:
    """Where a tensor stands in the shard file and in the whole tensor."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    placement: str
    global_shape: tuple[int, ...] | None = None
    global_offset: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Shard:
    """One rank's file: its name in the step's folder, size in bytes, CRC-32 of the whole file."""

    rank: int
    file: str
    nbytes: int
    crc32: int
    tensors: tuple[ShardTensor, ...] = ()


@dataclass(frozen=True)
class StepManifest:
    """A committed step. `created` is ISO 8601, UTC."""

    job_uid: str
    step: int
    attempt: int
    world_size: int
    created: str
    shards: tuple[Shard, ...]
    version: int = 1


def step_dir(copy: Copy) -> str:
    """Folder of a step as written by an attempt."""
    return f"step-{copy.step:08d}.a{copy.attempt:04d}"


def parse_step_dir(name: str) -> Copy | None:
    """The copy that a folder name stands for, or None for anything else."""
    match = _STEP.match(name)
    return Copy(int(match[1]), int(match[2])) if match else None


def shard_file(rank: int) -> str:
    """File name of a rank's shard."""
    return f"rank-{rank:05d}.safetensors"


def attempt_file(attempt: int) -> str:
    """Path of an attempt's record."""
    return f"{ATTEMPTS}/{attempt:08d}.json"


def parse_attempt_file(name: str) -> int | None:
    """The attempt that a record's file name stands for, or None."""
    match = _ATTEMPT.match(name)
    return int(match[1]) if match else None


def problem(manifest: StepManifest, copy: Copy, world_size: int) -> str | None:
    """Why a manifest cannot be used, or None.

    The job's UID is recorded but not compared: a store's folder belongs to namespace/name of a job, so that the same job
    applied again, or in another cluster, goes on from it.
    """
    if (manifest.step, manifest.attempt) != (copy.step, copy.attempt):
        return f"says step {manifest.step} of attempt {manifest.attempt}, its folder says otherwise"
    if manifest.world_size != world_size:
        return f"was written by {manifest.world_size} ranks, the job has {world_size}"
    if sorted(s.rank for s in manifest.shards) != list(range(world_size)):
        return "does not list every rank once"
    if any("/" in s.file or s.file.startswith(".") for s in manifest.shards):
        return "names a file outside its folder"
    return None


def to_delete(copies: Iterable[Copy], history: Iterable[Resume], keep: int) -> tuple[Copy, ...]:
    """Committed copies that retention gives up, oldest first: all but the newest `keep` valid ones."""
    records: History = tuple(history)
    alive = sorted(c for c in copies if is_valid(c, records))
    kept = set(alive[-keep:]) if keep > 0 else set(alive)
    newest = max(kept, default=None)
    return tuple(sorted(c for c in copies if c not in kept and newest is not None and c != newest))
