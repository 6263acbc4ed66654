"""Set-up work side by side: each part a function, started as soon as the parts it needs are done.

Prints one line when a part starts and one when it ends, each with the seconds since the command began.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from holdfast_cluster.shell import abort_all


@dataclass(frozen=True)
class Part:
    """One piece of work. `work` returns a few words on what it did, e.g. "cached"."""

    work: Callable[[], str]
    needs: tuple[str, ...] = ()


class Reporter:
    """Progress lines on stderr, each with the seconds since the reporter was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def elapsed(self) -> float:
        """Seconds since the reporter was made."""
        return time.monotonic() - self._began

    def say(self, part: str, text: str) -> None:
        """Prints one line."""
        with self._lock:
            print(f"[{self.elapsed():6.1f}s] {part}: {text}", file=sys.stderr, flush=True)


def run_parts(parts: Mapping[str, Part], reporter: Reporter, heartbeat: float = 30.0) -> dict[str, float]:
    """Runs all parts, as many at once as their needs allow, and returns each part's seconds.

    The first failure, or Ctrl-C, kills what the others have running and is raised.
    """
    seconds: dict[str, float] = {}
    waiting = dict(parts)
    running: dict[Future[float], str] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(parts))) as pool:
        try:
            while waiting or running:
                for name in [name for name, part in waiting.items() if seconds.keys() >= set(part.needs)]:
                    running[pool.submit(_timed, name, waiting.pop(name), reporter)] = name
                done, _ = wait(running, timeout=heartbeat, return_when=FIRST_COMPLETED)
                if not done:
                    reporter.say("waiting for", ", ".join(sorted(running.values())))
                for future in done:
                    seconds[running.pop(future)] = future.result()
        except BaseException:
            abort_all()
            raise
    return seconds


def _timed(name: str, part: Part, reporter: Reporter) -> float:
    began = time.monotonic()
    did = part.work()
    took = time.monotonic() - began
    reporter.say(name, f"{did} ({took:.1f} s)")
    return took
