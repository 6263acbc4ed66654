"""How often snapshots are taken: decided from what the sidecars measure and the failures seen, then told to the sidecars.

The arithmetic is in `interval`. An attempt's first interval travels with its prepare command. A change is told to the
coordinator, and again until every sidecar says that it obeys: ranks that differ for long fill their slots with steps that the
others lack, so a death half way must not leave it at that. While nobody plans, the last interval stays in force.
"""

from __future__ import annotations

from .. import interval
from ..interval import Interval, Measured
from ..messages import AgentState, Command
from . import reasons
from .passing import Pass
from .types import Send

_OBEYS = ("preparing", "prepared", "running")


def update(work: Pass) -> None:
    """Decide, remember, and tell whoever has another interval."""
    _decide(work)
    _note_capture(work)
    _tell(work)


def _decide(work: Pass) -> None:
    before = work.status.interval
    if before is not None and _astray(work):
        return  # the last one is still on its way
    decided = _decided(work, before.steps if before else 0)
    if before is not None and (decided.steps, decided.basis) == (before.steps, before.basis):
        return  # new digits of the same measurements are not worth a write
    work.set(interval=decided)
    if before is not None and decided.steps != before.steps:
        work.emit(reasons.SNAPSHOT_INTERVAL, f"from {before.steps} to {decided.steps} steps: {decided.reason}")


def _decided(work: Pass, current: int) -> Interval:
    if any(a.every is None for a in work.agents):
        return Interval(1, "every step: a pod's sidecar is of an older version, which knows no other interval", "old")
    return interval.decide(work.job.every, _measured(work), current)


def _measured(work: Pass) -> Measured:
    """Only of sidecars that have the present interval: the time of a step holds its share of the snapshots."""
    status = work.status
    current = status.interval.steps if status.interval else 0
    agents = [a for a in work.agents if _in_force(a) == current]
    failures, observed = interval.counted(status.failures, status.first_step_at, work.now)
    return Measured(
        step=max((a.step_seconds for a in agents if a.step_seconds is not None), default=None),
        cost=max((a.cost_seconds for a in agents if a.cost_seconds is not None), default=None),
        failures=failures,
        observed=observed,
        pods=work.job.replicas,
    )


def _in_force(agent: AgentState) -> int:
    return max(1, agent.every or 0)


def _note_capture(work: Pass) -> None:
    """Rank 0's word on how it captures. Its numbers may change with each snapshot: a new mode counts, not they."""
    first = next((a for a in work.agents if a.index == 0), None)
    if first is not None and first.capture and _head(first.capture) != _head(work.status.capture):
        work.set(capture=first.capture)


def _head(capture: str) -> str:
    return capture.partition(":")[0]


def _tell(work: Pass) -> None:
    decided, coordinator = work.status.interval, work.pod(0)
    if decided is None or coordinator is None or not _astray(work):
        return
    if coordinator.agent is not None and _obeys(work, coordinator.agent):
        order = Command("interval", coordinator.agent.attempt, every=decided.steps, reason=decided.reason)
        work.do(Send(coordinator.name, order))


def _astray(work: Pass) -> bool:
    """Whether a sidecar of this attempt has another interval."""
    decided = work.status.interval
    return decided is not None and any(_in_force(a) != decided.steps for a in work.agents if _obeys(work, a))


def _obeys(work: Pass, agent: AgentState) -> bool:
    return agent.every is not None and agent.attempt == work.status.attempt and agent.phase in _OBEYS
