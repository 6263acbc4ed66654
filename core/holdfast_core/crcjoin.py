"""CRC-32 of bytes from the CRC-32s of their parts, so that no byte is summed up twice.

Appending n bytes to what has the checksum c multiplies c by x^(8n) modulo the polynomial: a linear map of 32 bits, kept as four
tables of a byte each. As in zlib, whose `crc32_combine` Python does not offer.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # bit-reflected: x^0 is the highest bit
_ONE = 1 << 31
_LENGTHS = 256  # whose tables are kept, 4 KiB each


def join(first: int, second: int, nbytes: int) -> int:
    """The checksum of A followed by B, from theirs and the length of B in bytes."""
    table = _table(nbytes)
    moved = table[first & 255] ^ table[256 | first >> 8 & 255] ^ table[512 | first >> 16 & 255] ^ table[768 | first >> 24]
    return moved ^ second


def of_sum(checksums: Iterable[int], nbytes: int) -> int:
    """The checksum of the XOR of some buffers of `nbytes` bytes each, from theirs."""
    zero = of_zeros(nbytes)
    total = zero
    for checksum in checksums:
        total ^= checksum ^ zero
    return total


@lru_cache(_LENGTHS)
def of_zeros(nbytes: int) -> int:
    """The checksum of so many zeros."""
    return zlib.crc32(bytes(nbytes))


@lru_cache(_LENGTHS)
def _table(nbytes: int) -> array[int]:
    power = _power(8 * nbytes)
    table = array("I", bytes(4096))
    for byte in range(4):
        for bit in range(8):
            image, base = _multiply(power, 1 << 8 * byte + bit), byte * 256
            for low in range(1 << bit):
                table[base + (1 << bit) + low] = table[base + low] ^ image
    return table


def _power(exponent: int) -> int:
    """x to this power."""
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
