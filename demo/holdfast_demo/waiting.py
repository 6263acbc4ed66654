"""Bounded waits on conditions: nothing here sleeps without a condition and a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .errors import WaitTimeout

T = TypeVar("T")


def wait_for(
    probe: Callable[[], T],
    seconds: float,
    what: str,
    *,
    every: float = 0.2,
    seen: Callable[[], object] | None = None,
) -> T:
    """The first true value of `probe`. Raises WaitTimeout after `seconds`, with what `seen` says at that moment."""
    limit = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= limit:
            last = seen() if seen else value
            raise WaitTimeout(f"{what}: not within {seconds:.0f} s; last seen: {last}")
        time.sleep(every)
