"""One line per thing that happens, with the seconds since the start; what takes long says how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Prints to stderr; stdout is for results."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def say(self, part: str, text: str) -> None:
        """A line."""
        print(f"[{self.elapsed:6.1f}s] {part:9} {text}", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, part: str, text: str) -> Iterator[None]:
        """A line when it begins, and one when it is done."""
        self.say(part, f"{text} ...")
        start = time.monotonic()
        yield
        self.say(part, f"{text}: {time.monotonic() - start:.1f} s")
