"""The one pass over memory that a restore makes: bytes out of a slot, to where they belong, checksummed on the way.

All use of `holdfast_core.fastcopy` for restoring is here. Large states are cut among threads: one core does not saturate the
memory of most machines (measured on 2 cores: 13 GB/s with one thread, 16 with two; more where the destination has to be
faulted in), and the C loop holds no GIL.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from holdfast_core import fastcopy
from holdfast_core.checksum import CHUNK
from holdfast_core.manifest import CorruptShard, Entry

_WORTH_A_THREAD = 32 << 20  # bytes for each; a thread costs some 50 us to start
_MOST_THREADS = 8


class Move(NamedTuple):
    """All bytes of an entry from address `source` to address `to`; None: only verify them where they are."""

    entry: Entry
    source: int
    to: int | None


def check_sums(entry: Entry) -> None:
    """Raises CorruptShard unless an entry has one 32-bit checksum for each of its chunks."""
    sums = entry.checksums
    if len(sums) != -(-entry.nbytes // CHUNK) or (sums and not 0 <= min(sums) <= max(sums) < 1 << 32):
        raise CorruptShard(f"{entry.key}: {len(entry.checksums)} checksums for {entry.nbytes} bytes")


def carry_out(moves: Sequence[Move]) -> None:
    """Copy and verify; raises CorruptShard that names the first wrong chunk. What was copied up to there stays copied.

    The memory at all addresses must stay valid, and no destination may overlap another.
    """
    work: list[tuple[int, int, int]] = []
    expected = array("I")
    for move in moves:
        _cut(move, work)
        expected.extend(move.entry.checksums)
    actual = _run(work)
    if actual != expected:
        raise CorruptShard(_first_difference(moves, actual, expected))


def _cut(move: Move, work: list[tuple[int, int, int]]) -> None:
    """A move as copies of a chunk each: to, from, bytes; what is only to be verified is at `to`, and `from` is 0."""
    source, to, nbytes = move.source, move.to, move.entry.nbytes
    if to is None:
        source, to = 0, source
    for at in range(0, nbytes, CHUNK):
        work.append((to + at, source and source + at, min(CHUNK, nbytes - at)))


def _run(work: Sequence[tuple[int, int, int]]) -> array[int]:
    """The checksums, when all is done."""
    batch = fastcopy.Batch(work)
    count = min(len(os.sched_getaffinity(0)), _MOST_THREADS, batch.nbytes // _WORTH_A_THREAD)
    helpers = [threading.Thread(target=batch.run, args=(0,), daemon=True) for _ in range(count - 1)]
    for thread in helpers:
        thread.start()
    batch.run(0)
    for thread in helpers:
        thread.join()  # it only copies memory: it ends
    return batch.sums


def _first_difference(moves: Sequence[Move], actual: Sequence[int], expected: Sequence[int]) -> str:
    bad = next(i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b)
    for move in moves:
        chunks = len(move.entry.checksums)
        if bad < chunks:
            return f"{move.entry.key}: checksum mismatch in chunk {bad}"
        bad -= chunks
    raise AssertionError("every piece belongs to a move")
