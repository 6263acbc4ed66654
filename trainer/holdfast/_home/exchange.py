"""Each rank tells something to all the others, in rounds, at the start of a run without a sidecar.

Through torch.distributed if it is initialised; else through small files, whose names hold what only the ranks of this start
have in common, so that nothing left over from an earlier start is taken for an answer.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from holdfast_core import wire

from .._capture.slot import Identity
from ..errors import HoldfastError

T = TypeVar("T")
_TIMEOUT = 60.0
_START_VARIABLES = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")


def exchange(path: Path, who: Identity, number: int, mine: T, kind: type[T]) -> list[T]:
    """Every rank's value of this round (from 0), by rank. Raises HoldfastError if a rank does not show up in time."""
    if who.world_size == 1:
        return [mine]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() == who.world_size:
        texts: list[Any] = [None] * who.world_size
        dist.all_gather_object(texts, wire.dumps(mine).decode())
        return [wire.loads(kind, text) for text in texts]
    return _through_files(path, who, number, mine, kind)


def _through_files(path: Path, who: Identity, number: int, mine: T, kind: type[T]) -> list[T]:
    prefix = f"start-{_start_key():08x}"
    _tidy(path, who.rank, prefix)
    own = path / f"{prefix}.rank-{who.rank:05d}.{number}.json"
    temporary = own.with_suffix(".tmp")
    temporary.write_bytes(wire.dumps(mine))
    os.rename(temporary, own)
    deadline = time.monotonic() + _TIMEOUT
    return [_wait_for(path / f"{prefix}.rank-{rank:05d}.{number}.json", kind, deadline) for rank in range(who.world_size)]


def _wait_for(file: Path, kind: type[T], deadline: float) -> T:
    while True:
        with contextlib.suppress(FileNotFoundError):
            return wire.loads(kind, file.read_bytes())
        if time.monotonic() >= deadline:
            raise HoldfastError(
                f"{file} did not appear within {_TIMEOUT:.0f} s: did that rank start, and does it see the same directory?"
            )
        time.sleep(0.02)


def _start_key() -> int:
    parent = os.getppid()
    parts = [os.environ.get(name, "") for name in _START_VARIABLES]
    with contextlib.suppress(OSError, IndexError):  # start time of the parent: its pid alone may be used again
        parts.append(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19])
    return zlib.crc32("|".join([str(parent), *parts]).encode())


def _tidy(path: Path, rank: int, prefix: str) -> None:
    """Remove this rank's files of earlier starts; the others remove theirs."""
    for old in path.glob(f"start-*.rank-{rank:05d}.*"):
        if not old.name.startswith(prefix):
            old.unlink(missing_ok=True)
