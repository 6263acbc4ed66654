"""The one pass over memory that a restore makes: bytes out of a slot, to where they belong, checksummed on the way.

All use of `holdfast_core.fastcopy` for restoring is here. Large states are cut among threads: one core does not saturate the
memory of most machines (measured on 2 cores: 13 GB/s with one thread, 16 with two; more where the destination has to be
faulted in), and the C loop holds no GIL.
"""

from __future__ import annotations

import ctypes
import os
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_core import fastcopy
from holdfast_core.checksum import CHUNK
from holdfast_core.manifest import CorruptShard, Entry

_WORTH_A_THREAD = 32 << 20  # bytes for each; a thread costs some 50 us to start
_MOST_THREADS = 8


@dataclass(frozen=True)
class Move:
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
    work: list[tuple[int | None, int, int]] = []
    expected = array("I")
    for move in moves:
        _cut(move, work)
        expected.extend(move.entry.checksums)
    pieces = fastcopy.pieces(work)
    _run(pieces, work)
    actual = array("I", [piece.crc for piece in pieces])
    if actual != expected:
        raise CorruptShard(_first_difference(moves, actual, expected))


def _cut(move: Move, work: list[tuple[int | None, int, int]]) -> None:
    source, to, nbytes = move.source, move.to, move.entry.nbytes
    if 0 < nbytes <= CHUNK:
        work.append((to, source, nbytes))
        return
    for at in range(0, nbytes, CHUNK):
        work.append((None if to is None else to + at, source + at, min(CHUNK, nbytes - at)))


def _run(pieces: ctypes.Array[fastcopy.Piece], work: Sequence[tuple[int | None, int, int]]) -> None:
    shares = _shares([n for _, _, n in work])
    if len(shares) < 2:
        fastcopy.run(pieces)
        return
    size = ctypes.sizeof(fastcopy.Piece)
    parts = [(fastcopy.Piece * (end - start)).from_buffer(pieces, start * size) for start, end in shares]
    threads = [threading.Thread(target=fastcopy.run, args=(part,), daemon=True) for part in parts[1:]]
    for thread in threads:
        thread.start()
    fastcopy.run(parts[0])
    for thread in threads:
        thread.join()  # it only copies memory: it ends


def _shares(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of pieces of about the same number of bytes, one for each thread."""
    total = sum(sizes)
    threads = max(1, min(len(os.sched_getaffinity(0)), _MOST_THREADS, total // _WORTH_A_THREAD))
    shares: list[tuple[int, int]] = []
    start, done = 0, 0
    for index, nbytes in enumerate(sizes):
        done += nbytes
        if done * threads >= total * (len(shares) + 1):
            shares.append((start, index + 1))
            start = index + 1
    return shares


def _first_difference(moves: Sequence[Move], actual: Sequence[int], expected: Sequence[int]) -> str:
    bad = next(i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b)
    for move in moves:
        chunks = len(move.entry.checksums)
        if bad < chunks:
            return f"{move.entry.key}: checksum mismatch in chunk {bad}"
        bad -= chunks
    raise AssertionError("every piece belongs to a move")
