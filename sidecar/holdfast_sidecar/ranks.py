"""The pod's ranks as their launcher and the trainers tell it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from holdfast_core.local import Process
from holdfast_core.messages import RankState

WAITING, RUNNING, EXITED, LOST = "waiting", "running", "exited", "lost"


class Ranks:
    """State of each local rank in the current attempt."""

    def __init__(self, first_rank: int, processes: int) -> None:
        self._first, self._ranks = first_rank, range(first_rank, first_rank + processes)
        self._states: dict[int, RankState] = {}
        self._abandoned = False
        self._moved: dict[int, float] = {}
        self.reset()

    def assume(self, first_rank: int) -> None:
        """A spare gets its ranks."""
        self._first, self._ranks = first_rank, range(first_rank, first_rank + len(self._ranks))
        self.reset()

    def reset(self) -> None:
        """A new attempt: nothing runs, nothing is known."""
        self._abandoned = False
        self._states = {rank: RankState(rank) for rank in self._ranks}
        self._moved = dict.fromkeys(self._ranks, time.monotonic())

    def load(self, states: Iterable[RankState]) -> None:
        """Go on from what an earlier sidecar knew."""
        self._states.update({s.rank: s for s in states if s.rank in self._states})

    def __getitem__(self, rank: int) -> RankState:
        return self._states[rank]

    def __contains__(self, rank: int) -> bool:
        return rank in self._states

    def states(self) -> tuple[RankState, ...]:
        """All of them, with how long ago each one last made progress."""
        now = time.monotonic()
        return tuple(replace(s, idle_seconds=round(now - self._moved[r], 3)) for r, s in sorted(self._states.items()))

    @property
    def ended(self) -> bool:
        """Whether every rank's process has run and is gone."""
        return all(s.state in (EXITED, LOST) for s in self._states.values())

    @property
    def started(self) -> bool:
        """Whether a process of this attempt was ever seen."""
        return any(s.pid for s in self._states.values())

    @property
    def alive(self) -> bool:
        """Whether a process runs, as far as is known."""
        return any(s.state == RUNNING for s in self._states.values())

    def seen(self, processes: Iterable[Process]) -> bool:
        """The launcher's list of this attempt's processes; returns whether anything changed."""
        if self._abandoned:
            return False
        before = dict(self._states)
        for process in processes:
            rank = self._first + process.local_rank
            if rank in self._states:
                self._see(rank, process)
        return before != self._states

    def _see(self, rank: int, process: Process) -> None:
        old = self._states[rank]
        if not old.pid:
            self._moved[rank] = time.monotonic()
        self._states[rank] = replace(
            old,
            state=EXITED if process.ended else RUNNING,
            pid=process.pid,
            exit_code=process.exit_code,
            signal=process.signal,
            log_tail=process.log_tail if process.ended else (),
        )

    def lose(self, why: str) -> None:
        """Running processes are gone, and nobody saw how."""
        for rank, state in self._states.items():
            if state.state not in (EXITED, LOST):
                self._states[rank] = replace(state, state=LOST, log_tail=(why,))

    def abandon(self, why: str) -> None:
        """The attempt can't go on here, whatever its processes do."""
        self.lose(why)
        self._abandoned = True

    def progress(self, rank: int, step: int, loss: float | None) -> None:
        """A step is finished. A loss that JSON can't carry (NaN) is left out."""
        usable = loss if loss is not None and math.isfinite(loss) else None
        if step > self._states[rank].step:
            self._moved[rank] = time.monotonic()
            self._states[rank] = replace(self._states[rank], step=step, loss=usable)

    def restored(self, rank: int, step: int) -> None:
        """The rank has loaded its state."""
        self._moved[rank] = time.monotonic()
        self._states[rank] = replace(self._states[rank], restored_step=step)

    def corrupt(self, rank: int, message: str) -> None:
        """The rank refused its snapshot."""
        self._states[rank] = replace(self._states[rank], corrupt=message)
