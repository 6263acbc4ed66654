"""One planning pass in progress: what is observed, the status being written, the actions collected so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..messages import AgentState, RankState
from .roster import Roster
from .types import Action, Emit, Job, Observed, Plan, PodView, Spare, Status, Worker


class Pass:
    """Accumulates a `Plan`. `status` starts as what was remembered and ends as what is to be remembered."""

    def __init__(self, job: Job, observed: Observed, status: Status, now: float) -> None:
        self.job, self.observed, self.status, self.now = job, observed, status, now
        self.before = status
        self.reason = ""
        self.look_again = 1.0
        self._actions: list[Action] = []
        self._current: tuple[tuple[Worker, ...], tuple[PodView, ...]] | None = None
        self._roster: tuple[tuple[tuple[Worker, ...], tuple[Spare, ...]], Roster] | None = None

    @property
    def current(self) -> tuple[PodView, ...]:
        """The pods that count, by index."""
        if self._current is None or self._current[0] is not self.status.workers:
            pods = (self.roster.as_worker(p) for p in self.observed.pods)
            found = tuple(sorted((p for p in pods if p is not None), key=lambda p: p.index))
            self._current = (self.status.workers, found)
        return self._current[1]

    @property
    def roster(self) -> Roster:
        """Who counts as what, now."""
        key = (self.status.workers, self.status.spares)
        if self._roster is None or any(a is not b for a, b in zip(self._roster[0], key, strict=True)):
            self._roster = (key, Roster(*key))
        return self._roster[1]

    @property
    def agents(self) -> tuple[AgentState, ...]:
        """Last known states of the current pods' sidecars."""
        return tuple(p.agent for p in self.current if p.agent is not None)

    @property
    def ranks(self) -> tuple[RankState, ...]:
        """All ranks' states as told by sidecars that are at the current attempt."""
        return tuple(r for a in self.agents if a.attempt == self.status.attempt for r in a.ranks)

    def pod(self, index: int) -> PodView | None:
        """The current pod of an index."""
        return next((p for p in self.current if p.index == index), None)

    def waits(self, pod: PodView) -> bool:
        """Whether a pod is a spare without a rank."""
        return self.roster.waits(pod)

    def is_stale(self, pod: PodView) -> bool:
        """Whether a pod has been replaced, or nobody wants it (any more)."""
        return self.roster.is_stale(pod)

    def set(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = replace(self.status, **changes)

    def stage(self, stage: str, reason: str) -> None:
        """Enter a stage of the attempt."""
        self.set(stage=stage, stage_since=self.now, message=reason)
        self.reason = reason

    def in_stage(self) -> float:
        """Seconds since the current stage began."""
        return self.now - self.status.stage_since

    def do(self, action: Action) -> None:
        """Order something."""
        self._actions.append(action)

    def emit(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An event on the job."""
        self.do(Emit(reason, message, warning))

    def result(self) -> Plan:
        """The finished plan."""
        return Plan(self.status, tuple(self._actions), self.reason or self.status.message, self.look_again)
