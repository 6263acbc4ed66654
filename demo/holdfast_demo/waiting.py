"""Bounded waits on conditions: nothing here sleeps without a condition and a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .errors import WaitTimeout
from .kube import ApiError

T = TypeVar("T")


def wait_for(
    probe: Callable[[], T],
    seconds: float,
    what: str,
    *,
    every: float = 0.2,
    seen: Callable[[], object] | None = None,
) -> T:
    """The first true value of `probe`. Raises WaitTimeout after `seconds`, with what `seen` says at that moment.

    An API server that does not answer for once is looked at again: a wait is thousands of calls.
    """
    limit = time.monotonic() + seconds
    while True:
        value = _unless_passing(probe)
        if value and not isinstance(value, ApiError):
            return value
        if time.monotonic() >= limit:
            last = value if isinstance(value, ApiError) or seen is None else _unless_passing(seen)
            raise WaitTimeout(f"{what}: not within {seconds:.0f} s; last seen: {last}")
        time.sleep(every)


def _unless_passing(call: Callable[[], T]) -> T | ApiError:
    """What it returns, or the error by which the API server did not answer it; raises all other errors."""
    try:
        return call()
    except ApiError as error:
        if not error.passing:
            raise
        return error
