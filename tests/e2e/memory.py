"""Reaches into a pod's shared memory from outside, to see and to spoil what lies there."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast_core import arena
from holdfast_core.arena import ArenaHeader, Slot, SlotState


def sealed(pid: int, rank: int) -> set[int]:
    """Steps that a rank has sealed. `pid`: any process of a container of its pod."""
    with _arena(pid, rank) as (whole, header):
        return {slot.step for slot in _sealed(whole, header)}


def at_rest(pids: list[int]) -> int | None:
    """The newest step, if all ranks have the same and none is in the middle of a snapshot; `pids` by rank, all stopped."""
    newest = set()
    for rank, pid in enumerate(pids):
        with _arena(pid, rank) as (whole, header):
            if any(arena.read_slot(whole, i).state is SlotState.WRITING for i in range(header.slots)):
                return None
            newest.add(max((s.step for s in _sealed(whole, header)), default=None))
    return newest.pop() if len(newest) == 1 else None


def committed(pids: list[int]) -> set[int]:
    """Steps that the sidecars told their ranks to be safe; `pids` by rank."""
    steps = set()
    for rank, pid in enumerate(pids):
        with _arena(pid, rank) as (whole, _):
            steps.add(arena.committed(whole))
    return steps


def flip(pid: int, rank: int, step: int) -> None:
    """Change one bit in the data of a sealed step."""
    with _arena(pid, rank) as (whole, header):
        slot = next(s for s in _sealed(whole, header) if s.step == step)
        whole[header.region(slot.index) + slot.data_bytes // 2] ^= 0x10


def truncate(pid: int, rank: int, step: int) -> None:
    """Cut the whole file short, so that no slot is left: whoever has it mapped and looks gets SIGBUS."""
    path = _path(pid, rank)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 8)


def _sealed(whole: memoryview, header: ArenaHeader) -> list[Slot]:
    slots = (arena.read_slot(whole, i) for i in range(header.slots))
    return [s for s in slots if s.state is SlotState.SEALED]


@contextmanager
def _arena(pid: int, rank: int) -> Iterator[tuple[memoryview, ArenaHeader]]:
    with _path(pid, rank).open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped, memoryview(mapped) as whole:
        yield whole, arena.read_header(whole)


def _path(pid: int, rank: int) -> Path:
    folder = Path(f"/proc/{pid}/root/holdfast/shared/arena")
    return max(folder.glob(f"rank-{rank:05d}.g*.arena"), key=lambda p: p.stat().st_mtime)
