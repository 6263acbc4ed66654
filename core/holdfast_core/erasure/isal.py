"""Arithmetic in GF(2^8) by ISA-L, Intel's library of SIMD loops for erasure codes (on Arm too); calls release the GIL.

It is found in the wheel of pyeclib, which carries it for Linux on x86-64 and aarch64, else in the system. pyeclib's own calls
are not used: they copy everything twice and compute all rows (docs/decisions/010-erasure-code.md). The functions called here
are those of ISA-L's public header erasure_code.h. Matrices are rows of bytes, one behind the other.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterator, Sequence
from functools import cache

_MOST = 2**31 - 1  # bytes; lengths are ints
_TABLE = 32  # bytes that ISA-L expands a coefficient to


class NoLibrary(RuntimeError):
    """ISA-L is not there; the text says what to install."""


def cauchy(data: int, parity: int) -> bytes:
    """The generator of a systematic code: `data` + `parity` rows of `data` coefficients, any `data` of them independent."""
    matrix = ctypes.create_string_buffer((data + parity) * data)
    _library().gf_gen_cauchy1_matrix(matrix, data + parity, data)
    return matrix.raw


def inverse(matrix: bytes, size: int) -> bytes:
    """Of a square matrix; raises ValueError where there is none."""
    work, result = ctypes.create_string_buffer(matrix, len(matrix)), ctypes.create_string_buffer(size * size)
    if _library().gf_invert_matrix(work, result, size):
        raise ValueError("the matrix has no inverse")
    return result.raw


def multiply(a: int, b: int) -> int:
    """A product in the field."""
    return int(_library().gf_mul(a, b))


def tables(coefficients: bytes) -> bytes:
    """What `dot` and `add` take instead of a row of coefficients. Depends on the processor: not to be stored."""
    expanded = ctypes.create_string_buffer(_TABLE * len(coefficients))
    _library().ec_init_tables(len(coefficients), 1, coefficients, expanded)
    return expanded.raw


def dot(row: bytes, sources: Sequence[int], target: int, nbytes: int) -> None:
    """Memory at `target` = the sum of coefficient i times the memory at `sources[i]`; all are addresses of `nbytes` bytes."""
    count = _count(row, nbytes)
    _library().ec_encode_data(nbytes, count, 1, row, (ctypes.c_void_p * count)(*sources), (ctypes.c_void_p * 1)(target))


def add(row: bytes, position: int, source: int, target: int, nbytes: int) -> None:
    """Memory at `target` += coefficient `position` times the memory at `source`; both are addresses of `nbytes` bytes."""
    count = _count(row, nbytes)
    _library().ec_encode_data_update(nbytes, count, 1, position, row, source, (ctypes.c_void_p * 1)(target))


def _count(row: bytes, nbytes: int) -> int:
    if nbytes > _MOST:
        raise ValueError(f"{nbytes} bytes at a time: ISA-L takes {_MOST} at most")
    return len(row) // _TABLE


@cache
def _library() -> ctypes.CDLL:
    for path in _candidates():
        try:
            return _declared(ctypes.CDLL(path))
        except (OSError, AttributeError):  # not there, for another C library, or without these functions
            continue
    raise NoLibrary(
        "parity of 2 and more takes ISA-L: pip install 'pyeclib>=1.8' (its wheels carry it), or the system's libisal2"
    )


def _candidates() -> Iterator[str]:
    try:
        files = importlib.metadata.files("pyeclib") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    yield from (str(file.locate()) for file in files if file.name.startswith("libisal"))
    yield "libisal.so.2"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, memory, byte = ctypes.c_int, ctypes.c_void_p, ctypes.c_ubyte
    library.gf_gen_cauchy1_matrix.argtypes = (memory, number, number)
    library.gf_invert_matrix.argtypes = (memory, memory, number)
    library.gf_mul.argtypes, library.gf_mul.restype = (byte, byte), byte
    library.ec_init_tables.argtypes = (number, number, memory, memory)
    library.ec_encode_data.argtypes = (number, number, number, memory, memory, memory)
    library.ec_encode_data_update.argtypes = (number, number, number, number, memory, memory, memory)
    for name in ("gf_gen_cauchy1_matrix", "ec_init_tables", "ec_encode_data", "ec_encode_data_update"):
        getattr(library, name).restype = None
    return library
