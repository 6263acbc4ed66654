"""The threads with which torch computes, borrowed for a synchronous copy.

After an operator these threads spin for a moment, in wait for the next one. A copy thread of our own has to take a core from
them first; they themselves are there at once (38 MB on 2 cores after an optimizer's step: 1.90 ms with them, 2.26 ms with a
thread of ours, 2.16 ms with none). They belong to GNU OpenMP, whose entry point for compiled code is a stable interface
(`GOMP_parallel`, GCC 4.9 and later). Without it, as on macOS, there is no team.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

Fork = Callable[[int, int], object]
_MAPS = "/proc/self/maps"


def fork() -> tuple[Fork, int] | None:
    """Something that calls `function(argument)`, both addresses, in each thread of torch's team, and their number.

    None: there is no such team, or no second thread in it. Always as many threads as torch uses: another number would end some
    of them, and torch's next operator would have to start them again.
    """
    threads = torch.get_num_threads()
    parallel = _parallel()
    if parallel is None or threads < 2:
        return None
    return (lambda function, argument: parallel(function, argument, threads, 0)), threads


@cache
def _parallel() -> Callable[[int, int, int, int], object] | None:
    try:
        with open(_MAPS, encoding="utf-8", errors="replace") as maps:
            path = next(p for line in maps if "libgomp" in (p := line.rstrip("\n").partition("/")[2]))
        function = ctypes.CDLL("/" + path).GOMP_parallel
    except (OSError, StopIteration, AttributeError):
        return None
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found: Callable[[int, int, int, int], object] = function
    return found
