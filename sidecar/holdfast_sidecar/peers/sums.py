"""Checksums that travel ahead of the bytes which they are about: a table that covers a part without a hole.

The sender has them from capture (a slot's manifest, a parity buffer's record) and need not look at the bytes at all; the
receiver checks what arrived, while it is in the cache. So one pass proves memory and network from end to end.

    table   CRC-32 of what the first chunk has before the part, of what the last one has behind it; then for each chunk its
            start (counted from the part's), its bytes, its CRC-32
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from holdfast_core.crcjoin import join
from holdfast_core.fastcopy import crc32

RECORD = np.dtype([("start", "<i8"), ("nbytes", "<u4"), ("crc", "<u4")])
_EDGES = struct.Struct("<II")
Records = Any  # a NumPy array of RECORD


class Mismatch(Exception):
    """Bytes that are not what they should be: `start` to `end`, counted from the part's start, and cut to it."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(f"bytes {start} to {end} do not match their checksum")
        self.start, self.end = start, end


def table(chunks: Records, read: Callable[[int, int], memoryview], start: int, end: int) -> bytes:
    """For bytes `start` to `end` of what `read` reads, which `chunks` cover, in order."""
    ends = chunks["start"] + chunks["nbytes"]
    first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(chunks["start"], end, "left"))
    found = chunks[first:last].copy()
    before, behind = read(int(found["start"][0]), start), read(end, int(ends[last - 1]))
    found["start"] -= start
    return b"".join((_EDGES.pack(crc32(before), crc32(behind)), found.tobytes()))


class Check:
    """A part's checksums, compared with its bytes as they come."""

    def __init__(self, raw: bytes, nbytes: int) -> None:
        """Raises ValueError for a table that does not cover so many bytes."""
        if len(raw) < _EDGES.size + RECORD.itemsize or (len(raw) - _EDGES.size) % RECORD.itemsize:
            raise ValueError(f"a table of {len(raw)} bytes")
        self._told, self._behind = _EDGES.unpack_from(raw)
        records = np.frombuffer(raw, RECORD, offset=_EDGES.size)
        starts, ends = records["start"], records["start"] + records["nbytes"]
        if starts[0] > 0 or ends[0] <= 0 or ends[-1] < nbytes or starts[-1] >= nbytes or (ends[:-1] != starts[1:]).any():
            raise ValueError("a table with holes")
        self._chunks = list(zip(starts.tolist(), ends.tolist(), records["crc"].tolist(), strict=True))
        self._nbytes, self._at, self._index = nbytes, 0, 0

    def feed(self, view: memoryview) -> int:
        """The next bytes; returns their CRC-32. Raises Mismatch."""
        total, done = 0, 0
        while done < len(view):
            end = self._chunks[self._index][1]
            section = view[done : done + min(len(view) - done, end - self._at)]
            told = crc32(section)
            total, self._told = join(total, told, len(section)), join(self._told, told, len(section))
            done, self._at = done + len(section), self._at + len(section)
            if self._at == min(end, self._nbytes):
                self._close_chunk()
        return total

    def _close_chunk(self) -> None:
        start, end, expected = self._chunks[self._index]
        if end > self._at:
            self._told = join(self._told, self._behind, end - self._at)
        if self._told != expected:
            raise Mismatch(max(0, start), min(end, self._nbytes))
        self._told, self._index = 0, self._index + 1
