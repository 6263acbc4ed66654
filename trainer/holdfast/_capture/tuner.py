"""How to copy, chosen from what was measured in this job. Pure: times come in, a choice goes out.

A background copy is free where the cores wait for something else, and costs more than a synchronous one where they all compute:
which it is depends on the model, the machine and the other ranks on it. So a few ways are tried in turn, step by step, and the
one with the shortest whole step (stall, slower forward and backward, waiting at the fence, all of it) is kept; a tie goes to
the simplest, a synchronous copy by one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

_WARM_UP = 3  # snapshots: each slot is written for the first time
_ROUND = 8  # samples of each way before ways are dropped
_ROUNDS = 3
_CLEARLY = 3.0  # standard errors; several ways are looked at several times
_NEGLIGIBLE = 0.002  # of a step: not worth trying anything else
_SMALL = 4 << 20  # bytes
_RECENT = 24
_DRIFT = 1.3  # a step this much longer or shorter than when the choice was made: choose again


@dataclass(frozen=True)
class Way:
    """How a snapshot is copied: `lazy` (behind the next step) or not, and by how many threads."""

    lazy: bool
    threads: int

    def __str__(self) -> str:
        """For people."""
        return f"{'lazy' if self.lazy else 'sync'}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass
class Tuner:
    """Asked for a way before each snapshot; told the time from there to the next snapshot, and the copy's own time."""

    ways: Sequence[Way]
    reason: str = "not measured yet"
    way: Way = field(init=False)
    _left: list[Way] = field(init=False)
    _samples: dict[Way, list[float]] = field(init=False)
    _seen: int = field(init=False, default=0)
    _state_bytes: int = field(init=False, default=-1)
    _decided: bool = field(init=False, default=False)
    _chosen_step: float = field(init=False, default=0.0)
    _recent: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._left, self._samples, self._seen = list(self.ways), {w: [] for w in self.ways}, 0
        self.way, self._decided = self._left[0], False
        self._recent = []

    def choose(self, state_bytes: int) -> Way:
        """The way for the next snapshot of a state of this size."""
        if self._state_bytes < 0 or not 0.8 < (state_bytes + 1) / (self._state_bytes + 1) < 1.25:
            self._state_bytes = state_bytes
            self._restart()
            if len(self.ways) == 1:
                self._decide(self.ways[0], self.reason)
            elif state_bytes <= _SMALL:
                self._decide(self._left[0], f"the state is small ({state_bytes / 1e6:.1f} MB)")
        if not self._decided:
            self.way = self._left[self._seen % len(self._left)]
        return self.way

    def measured(self, step_seconds: float, copy_seconds: float) -> None:
        """The snapshot before: the time from its start to the next one's, and of its copy (if it was synchronous, else 0)."""
        self._seen += 1
        if self._decided:
            self._watch(step_seconds)
        elif self._seen > _WARM_UP:
            self._explore(step_seconds, copy_seconds)

    def _watch(self, step_seconds: float) -> None:
        self._recent = [*self._recent, step_seconds][-_RECENT:]
        if len(self._recent) < _RECENT:
            return
        now = median(self._recent)
        self._chosen_step = self._chosen_step or now
        drifted = not 1 / _DRIFT < now / self._chosen_step < _DRIFT
        if drifted and self._state_bytes > _SMALL and len(self.ways) > 1:
            self.reason = f"choosing again: a step takes {1e3 * now:.0f} ms, not {1e3 * self._chosen_step:.0f} ms"
            self._restart()

    def _explore(self, step_seconds: float, copy_seconds: float) -> None:
        samples = self._samples[self.way]
        samples.append(step_seconds)
        if not self.way.lazy and len(samples) == _ROUND and 0 < copy_seconds < _NEGLIGIBLE * median(samples):
            self._decide(self.way, f"the copy takes {100 * copy_seconds / median(samples):.2f}% of a step")
            return
        fewest = min(len(self._samples[w]) for w in self._left)
        if fewest and fewest % _ROUND == 0 and all(len(self._samples[w]) == fewest for w in self._left):
            self._narrow(fewest // _ROUND >= _ROUNDS)

    def _narrow(self, last: bool) -> None:
        """Drop the ways that are clearly slower than the best; at the end take the simplest of those that are left.

        Which of them was the quickest is noise: taken at its word, it had chosen lazy where sync made shorter steps.
        """
        medians = {w: median(self._samples[w]) for w in self._left}
        best = min(self._left, key=lambda w: medians[w])
        limit = medians[best] + _CLEARLY * max(_error(self._samples[w]) for w in self._left)
        self._left = [w for w in self._left if medians[w] <= limit]
        if last or len(self._left) == 1:
            tried = "; ".join(f"{w} {1e3 * median(s):.1f} ms" for w, s in self._samples.items() if s)
            chosen = self._left[0]
            why = "the shortest step" if chosen == best else "the simplest way, none is clearly shorter,"
            self._decide(chosen, f"{why} of those tried ({tried})")

    def _decide(self, way: Way, reason: str) -> None:
        self.way, self.reason, self._decided = way, reason, True
        self._chosen_step, self._recent = 0.0, []


def _error(samples: Sequence[float]) -> float:
    """Standard error of the median, from the median absolute deviation (a few wild samples do not count)."""
    middle = median(samples)
    return 1.4826 * 1.2533 * median(abs(s - middle) for s in samples) / float(len(samples) ** 0.5)


def ways_for(cores: int, team: int, device: bool) -> tuple[Way, ...]:
    """What is worth trying with so many cores for each process; `team`: threads of torch's that can be had (0: none).

    A device's copy engine makes lazy copies free.
    """
    if device:
        return (Way(True, 1),)
    many = min(cores, 4)
    sync = tuple(Way(False, n) for n in sorted({1, team or many}))
    return (*sync, Way(True, 1), *((Way(True, many // 2),) if many >= 4 else ()))
