"""Checksums joined are those of the bytes joined."""

from __future__ import annotations

import zlib

from holdfast_core import crcjoin
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksum_of_two_parts_is_that_of_the_whole(first: bytes, second: bytes) -> None:
    assert crcjoin.join(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_long_parts_join_too() -> None:
    first, second = bytes(range(256)) * 4096, b"\xa5" * (4 << 20)
    assert crcjoin.join(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.integers(0, 200).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1, max_size=5)))
def test_the_checksum_of_a_sum_comes_from_those_of_its_parts(parts: list[bytes]) -> None:
    total = bytearray(len(parts[0]))
    for part in parts:
        total = bytearray(a ^ b for a, b in zip(total, part, strict=True))
    assert crcjoin.of_sum(map(zlib.crc32, parts), len(total)) == zlib.crc32(total)
