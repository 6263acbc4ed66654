"""Copy and CRC-32 at memory speed, through the small C library in `core/native`; through zlib where it is not there.

The library is built with the package when a C compiler is at hand (`hatch_build.py`) and always in the images. Results are the
same either way. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_LIBRARY = Path(__file__).parent / "_native" / f"copycrc-{platform.machine()}.so"
_WORTH = 4096  # bytes; below this zlib is as fast as the way into the library


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer, which tells the address of read-only buffers too."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        library.holdfast_touch  # noqa: B018 - a library built from older source lacks it
    except (OSError, AttributeError):  # not built, or for another C library
        return None
    library.holdfast_copy_crc32.restype = ctypes.c_uint32
    library.holdfast_copy_crc32.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
    library.holdfast_batch.restype = ctypes.c_uint64
    library.holdfast_batch.argtypes = (
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
    )  # fmt: skip
    library.holdfast_touch.restype = ctypes.c_uint64
    library.holdfast_touch.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
    return library


_library = _load()


def available() -> bool:
    """Whether the C library is in use."""
    return _library is not None


def crc32(buffer: memoryview, value: int = 0) -> int:
    """zlib.crc32 of a contiguous buffer, faster."""
    if _library is None or buffer.nbytes < _WORTH:
        return zlib.crc32(buffer, value)
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    try:
        return int(_library.holdfast_copy_crc32(None, view.buf, buffer.nbytes, value))
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def touch(objects: array[int], first: int, count: int) -> None:
    """Bring what lies at `count` addresses, from the `first` of an array("Q") on, into the cache; they must be valid."""
    if not 0 <= first <= first + count <= len(objects):
        raise ValueError(f"{count} addresses from the {first}. on lie outside the {len(objects)} given")
    if _library is not None:
        _library.holdfast_touch(objects.buffer_info()[0] + 8 * first, count)


class Batch:
    """Copies that several threads carry out together, once or again and again; each `run` call claims what is left.

    `work` holds (offset at the destination, source address or 0, bytes); 0 means: only sum up what stands at the destination.
    The memory must stay valid while any `run` is under way. After `finished()`, `sums` has a CRC-32 for each copy: the i-th
    at i, or at `places[i]` of an array("I") that is given.
    """

    def __init__(
        self, work: Sequence[tuple[int, int, int]], sums: array[int] | None = None, places: Sequence[int] | None = None
    ) -> None:
        where = range(len(work)) if places is None else places
        self._work = array("Q", [n for copy, place in zip(work, where, strict=True) for n in (*copy, place)])
        self._count = len(work)
        self._next = array("Q", [0])
        self._done = bytearray(self._count)
        self._tickets = itertools.count()  # of the slow way; taking one is atomic
        self.nbytes = sum(self._work[2::4])
        self.sums = array("I", bytes(4 * self._count)) if sums is None else sums
        if self._count and max(self._work[3::4]) >= len(self.sums):
            raise ValueError("a place for a checksum lies outside the array")

    def __len__(self) -> int:
        return self._count

    def reset(self) -> None:
        """Start anew. Nobody may be in `run`."""
        self._next[0] = 0
        self._tickets = itertools.count()
        self._done[:] = bytes(self._count)

    def finished(self) -> bool:
        """Whether every copy is done, by whomever."""
        return self._done.find(0) < 0

    def run(self, base: int, stop: array[int] | None = None) -> int:
        """Copy to the address `base` what nobody has claimed yet, without the GIL; returns how many copies this call made.

        `stop[0]`, an array("I"), ends it between two copies when it is set.
        """
        stop = stop if stop is not None else _NEVER
        if _library is None:
            return self._run_slowly(base, stop)
        return int(_library.holdfast_batch(*self._arguments(base, stop)))

    def run_in(self, fork: Callable[[int, int], object], base: int, stop: array[int]) -> None:
        """`run` in each thread of somebody's team: `fork(function, argument)`, both addresses, calls `function(argument)` in
        all of them and returns when they have returned."""
        if _library is None:
            self._run_slowly(base, stop)
            return
        arguments = (ctypes.c_uint64 * 7)(*self._arguments(base, stop))
        fork(_address(_library.holdfast_batch_team), ctypes.addressof(arguments))

    def _arguments(self, base: int, stop: array[int]) -> tuple[int, ...]:
        done = ctypes.addressof((ctypes.c_char * self._count).from_buffer(self._done))
        work, sums, following, flag = (a.buffer_info()[0] for a in (self._work, self.sums, self._next, stop))
        return work, self._count, base, sums, done, following, flag

    def _run_slowly(self, base: int, stop: array[int]) -> int:
        made = 0
        while not stop[0]:
            index = next(self._tickets)
            if index >= self._count:
                break
            to, source, n, place = self._work[4 * index : 4 * index + 4]
            self.sums[place] = zlib.crc32((ctypes.c_char * n).from_address(source or base + to)) if n else 0
            if source and n:
                ctypes.memmove(base + to, source, n)
            self._done[index] = 1
            made += 1
        return made


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_NEVER = array("I", [0])
