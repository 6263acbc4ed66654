"""Finds out when ranks wait for each other's steps for ever, and names a step to meet at. Pure; time is an argument.

A rank gives up a sealed step only when a newer one is committed. Ranks that skipped different steps (slots leased for
different times, no collective that keeps them together) can fill all their slots with steps that the others lack: then
nothing is ever committed again. The cure: the coordinator promises never to commit a step below R, so slots with such steps
are free, and nobody seals a step below R. R lies ahead of everybody; if somebody had passed it already, the next one lies
further ahead.
"""

from __future__ import annotations

from collections.abc import Iterable

PATIENCE = 1.0  # seconds after the first skipped step since the last commit
_FIRST_MARGIN = 2
_LARGEST_MARGIN = 4096


class Resync:
    """The state of one attempt. `floor` is the step below which nothing is committed any more."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self.floor: int | None = None
        self._ranks = frozenset(ranks)
        self._progress: dict[int, int] = {}
        self._stalled: float | None = None
        self._margin = _FIRST_MARGIN

    def sealed(self, rank: int, step: int) -> None:
        """A rank has got to this step."""
        self._progress[rank] = max(step, self._progress.get(rank, step))

    def skipped(self, rank: int, step: int, now: float) -> None:
        """A rank has got to this step and had no slot for it."""
        self.sealed(rank, step)
        if self._stalled is None:
            self._stalled = now

    def committed(self) -> None:
        """Ranks agree again."""
        self._stalled, self._margin = None, _FIRST_MARGIN

    def meet(self, now: float) -> int | None:
        """The step to meet at, if it is time to say so."""
        if self._stalled is None or now - self._stalled < PATIENCE or self._progress.keys() != self._ranks:
            return None
        if self.floor is not None and min(self._progress.values()) <= self.floor:
            return None  # somebody has still to get there: the others wait with their snapshots of it
        self.floor = max(self._progress.values()) + self._margin
        self._margin = min(2 * self._margin, _LARGEST_MARGIN)
        self._stalled = None
        return self.floor
