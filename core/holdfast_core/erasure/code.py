"""The codes: parity of one stripe, and what is lost of it, piece by piece.

A codeword has `data` pieces (positions 0..k-1) and `parity` rows (positions k..k+m-1). Pieces of one codeword start at the same
offset of their blocks. One that is shorter than its target, because its image ends there, counts as padded with zeros; what is
longer is cut. Codes keep no state but tables: threads may share one. The work is done without the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Protocol

import numpy as np

from . import isal
from .layout import MOST_MEMBERS


class Code(Protocol):
    """Linear: the parity of a change (`old ^ new`) is the change of the parity."""

    data: int
    parity: int

    def add(self, target: memoryview, row: int, position: int, piece: memoryview) -> None:
        """Add a data piece, or its change, to the parity row in `target`, in place."""

    def encode_row(self, pieces: Sequence[memoryview], row: int, out: memoryview) -> None:
        """Write the parity row of all k data pieces to `out`; cheaper than `add` one after the other."""

    def rebuild(self, have: Mapping[int, memoryview], want: int, out: memoryview) -> None:
        """Write the piece at position `want`, data or parity, to `out`, from exactly k others, by position."""


@cache
def code(data: int, parity: int) -> Code:
    """XOR for one parity, Reed-Solomon for more. Raises ValueError, and isal.NoLibrary where Reed-Solomon can't be had."""
    if data < 1 or parity < 1 or data + parity > MOST_MEMBERS:
        raise ValueError(f"no code has {data} data and {parity} parity: want at least one each and {MOST_MEMBERS} at most")
    return Xor(data) if parity == 1 else ReedSolomon(data, parity)


class Xor:
    """One parity: the sum of the data. It runs at the speed of memory."""

    parity = 1

    def __init__(self, data: int) -> None:
        self.data = data

    def add(self, target: memoryview, row: int, position: int, piece: memoryview) -> None:
        """See Code."""
        _check_row(self, row, range(position, position + 1))
        to, source = _bytes(_writable(target)), _bytes(piece)
        n = min(len(to), len(source))
        np.bitwise_xor(to[:n], source[:n], out=to[:n])

    def encode_row(self, pieces: Sequence[memoryview], row: int, out: memoryview) -> None:
        """See Code."""
        _check_row(self, row, range(len(pieces)), self.data)
        _sum(pieces, _bytes(_writable(out)))

    def rebuild(self, have: Mapping[int, memoryview], want: int, out: memoryview) -> None:
        """See Code."""
        _check_parts(self, have, want)
        _sum(list(have.values()), _bytes(_writable(out)))


class ReedSolomon:
    """Any number of parities, over GF(2^8) with a Cauchy matrix, by ISA-L."""

    def __init__(self, data: int, parity: int) -> None:
        self.data, self.parity = data, parity
        matrix = isal.cauchy(data, parity)
        self._generator = [matrix[at : at + data] for at in range(0, len(matrix), data)]
        self._rows = [isal.tables(row) for row in self._generator[data:]]
        self._solved = lru_cache(4096)(self._solve)

    def add(self, target: memoryview, row: int, position: int, piece: memoryview) -> None:
        """See Code."""
        _check_row(self, row, range(position, position + 1))
        _accumulate(self._rows[row], position, piece, _writable(target))

    def encode_row(self, pieces: Sequence[memoryview], row: int, out: memoryview) -> None:
        """See Code."""
        _check_row(self, row, range(len(pieces)), self.data)
        _combine(self._rows[row], pieces, _writable(out))

    def rebuild(self, have: Mapping[int, memoryview], want: int, out: memoryview) -> None:
        """See Code."""
        _check_parts(self, have, want)
        positions = tuple(sorted(have))
        _combine(self._solved(positions, want), [have[p] for p in positions], _writable(out))

    def _solve(self, positions: tuple[int, ...], want: int) -> bytes:
        """The coefficients, as ISA-L's tables, with which the pieces at `positions` make the one at `want`."""
        rows = isal.inverse(b"".join(self._generator[p] for p in positions), self.data)
        wanted = self._generator[want]
        return isal.tables(bytes(_dot(wanted, rows[column :: self.data]) for column in range(self.data)))


def _check_row(code: Code, row: int, positions: range, count: int = 1) -> None:
    """Raises ValueError: outside the tables lies somebody else's memory."""
    if not 0 <= row < code.parity or not 0 <= positions.start < positions.stop <= code.data or len(positions) != count:
        raise ValueError(
            f"row {row}, positions {list(positions)}: want one of {code.parity} rows, {count} of {code.data} positions"
        )


def _check_parts(code: Code, have: Mapping[int, memoryview], want: int) -> None:
    places = range(code.data + code.parity)
    if len(have) != code.data or want in have or not all(p in places for p in (*have, want)):
        raise ValueError(f"position {want} from positions {list(have)}: want it from {code.data} others of {len(places)}")


def _dot(a: bytes, b: bytes) -> int:
    total = 0
    for x, y in zip(a, b, strict=True):
        total ^= isal.multiply(x, y)
    return total


def _sum(pieces: Sequence[memoryview], out: np.ndarray) -> None:
    first, *others = sorted((_bytes(piece)[: len(out)] for piece in pieces), key=len, reverse=True)
    if others and len(others[0]) == len(out):
        np.bitwise_xor(first, others.pop(0), out=out)
    else:
        out[: len(first)] = first
        out[len(first) :] = 0
    for piece in others:
        np.bitwise_xor(out[: len(piece)], piece, out=out[: len(piece)])


def _combine(row: bytes, pieces: Sequence[memoryview], out: memoryview) -> None:
    if all(piece.nbytes >= out.nbytes for piece in pieces):
        return isal.dot(row, [_address(piece) for piece in pieces], _address(out), out.nbytes)
    _bytes(out)[:] = 0
    for position, piece in enumerate(pieces):
        _accumulate(row, position, piece, out)
    return None


def _accumulate(row: bytes, position: int, piece: memoryview, out: memoryview) -> None:
    isal.add(row, position, _address(piece), _address(out), min(piece.nbytes, out.nbytes))


def _writable(view: memoryview) -> memoryview:
    if view.readonly:  # ISA-L would not notice
        raise ValueError("the target is read-only")
    return view


def _bytes(view: memoryview) -> np.ndarray:
    return np.frombuffer(view, np.uint8)


def _address(view: memoryview) -> int:
    """Of memory that the caller keeps; raises ValueError or TypeError where it does not lie in one piece."""
    if view.readonly or not view.nbytes:
        return _bytes(view).ctypes.data
    return ctypes.addressof(ctypes.c_char.from_buffer(view))  # a third of the time
