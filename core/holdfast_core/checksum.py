"""Chunked checksums: the one definition of "the same bytes" for RAM, wire and stores.

A buffer is cut into chunks of `CHUNK` bytes and each chunk has its own CRC-32 (IEEE, as in zlib), so that a large tensor
is verified piece by piece while it is copied, and a mismatch names where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .fastcopy import crc32

ALGORITHM = "crc32"
CHUNK = 4 << 20  # bytes


def chunks(buffer: memoryview) -> Iterator[memoryview]:
    """The buffer's chunks in order; a zero-sized buffer has none."""
    for start in range(0, buffer.nbytes, CHUNK):
        yield buffer[start : start + CHUNK]


def checksums(buffer: memoryview) -> tuple[int, ...]:
    """One CRC-32 for each chunk of a contiguous byte buffer (format 'B')."""
    return tuple(crc32(chunk) for chunk in chunks(buffer))


def first_mismatch(buffer: memoryview, expected: Sequence[int]) -> int | None:
    """Index of the first chunk whose checksum differs, or None if all agree."""
    actual = checksums(buffer)
    if len(actual) != len(expected):
        return min(len(actual), len(expected))
    return next((i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b), None)
