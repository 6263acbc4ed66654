"""What the trainers' messages tell about time: how long a step takes, and what snapshots cost. Told on in the state.

Medians, so that a pause (an evaluation, a restart) or a slow first snapshot changes no decision. Of several ranks the slowest
counts: they wait for each other in every step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from holdfast_core.local import Sealed

_STEPS = 32  # even: of steps that alternate, the median is their mean
_SNAPSHOTS = 16
_FEWEST_STEPS = 8
_MODE_LENGTH = 500  # characters
_FEWEST_SNAPSHOTS = 4


@dataclass(frozen=True)
class _Mark:
    attempt: int
    step: int
    at: float


class Pace:
    """Windows over the last steps and snapshots of each rank. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: dict[int, _Mark] = {}
        self._steps: dict[int, deque[float]] = {}
        self._costs: dict[int, deque[float]] = {}
        self._modes: dict[int, str] = {}
        self.last = Sealed(0, 0, -1, "", 0, 0, 0.0)

    def progress(self, rank: int, attempt: int, step: int) -> None:
        """A rank finished a step. The first one of an attempt only starts the watch."""
        now, before = self._clock(), self._marks.get(rank)
        if before is not None and before.attempt == attempt:
            if step <= before.step:
                return
            window = self._steps.setdefault(rank, deque(maxlen=_STEPS))
            window.append((now - before.at) / (step - before.step))
        self._marks[rank] = _Mark(attempt, step, now)

    def sealed(self, message: Sealed) -> None:
        """A rank has a new snapshot."""
        self.last = message
        self._modes[message.rank] = message.mode
        cost = message.stall_seconds + message.fence_seconds
        self._costs.setdefault(message.rank, deque(maxlen=_SNAPSHOTS)).append(cost)

    def forget_steps(self) -> None:
        """Another interval: steps so far held another share of the snapshots' cost."""
        self._steps.clear()

    @property
    def mode(self) -> str:
        """How the first of the pod's ranks captures, in its own words."""
        return self._modes[min(self._modes)] if self._modes else ""

    @property
    def step_seconds(self) -> float | None:
        """Median time of a step, None while too few were seen."""
        return _slowest(self._steps.values(), _FEWEST_STEPS)

    @property
    def cost_seconds(self) -> float | None:
        """Median of what a snapshot takes from the training loop, None while too few were seen."""
        return _slowest(self._costs.values(), _FEWEST_SNAPSHOTS)


def usable(message: Sealed) -> Sealed:
    """The message with times and sizes that can be counted and told on: finite, not negative; its words not too many."""
    return replace(
        message,
        stall_seconds=_finite(message.stall_seconds),
        fence_seconds=_finite(message.fence_seconds),
        capture_seconds=_finite(message.capture_seconds),
        copied=max(-1, message.copied),
        mode=message.mode[:_MODE_LENGTH],
    )


def _finite(seconds: float) -> float:
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _slowest(windows: Iterable[deque[float]], fewest: int) -> float | None:
    medians = [statistics.median(w) for w in windows if len(w) >= fewest]
    return round(max(medians), 7) if medians else None
