"""How many bytes a pod may send in a second, all its connections together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LEAST = 1 << 10  # bytes
_PORTIONS = 8  # a second, at least


class Throttle:
    """Whoever wants to send asks first, for a window at a time. In the order in which they ask, so connections share fairly.

    `rate` is in bytes a second, 0 for no limit. What was not used is not saved up.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._free = float("-inf")  # when what was promised so far will have been sent

    def step(self, most: int, connections: int) -> int:
        """A good number of bytes to ask for at a time: `most`, or less on a slow line that so many share, so that each of them
        has its turn once a second and none is taken for hung."""
        return most if not self._rate else min(most, max(_LEAST, self._rate // max(_PORTIONS, connections)))

    def take(self, nbytes: int) -> None:
        """Wait until so many bytes may be sent."""
        if not self._rate:
            return
        with self._lock:
            now = self._clock()
            begin = max(now, self._free)
            self._free = begin + nbytes / self._rate
        if begin > now:
            self._sleep(begin - now)
