"""How often snapshots are taken: decided from what the sidecars measure and the failures seen, then told to the sidecars.

The arithmetic is in `interval`. An attempt's first interval travels with its prepare command, a change with a command of its
own, which is given again until every sidecar says that it obeys. While nobody plans, the last one stays in force.
"""

from __future__ import annotations

from .. import interval
from ..interval import Measured
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
    decided = interval.decide(work.job.every, _measured(work), before.steps if before else 0)
    if before is not None and (decided.steps, decided.basis) == (before.steps, before.basis):
        return  # new digits of the same measurements are not worth a write
    work.set(interval=decided)
    if before is not None and decided.steps != before.steps:
        work.emit(reasons.SNAPSHOT_INTERVAL, f"from {before.steps} to {decided.steps} steps: {decided.reason}")


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
    decided = work.status.interval
    if decided is None:
        return
    for pod in work.current:
        agent = pod.agent
        if agent is None or agent.every is None or agent.attempt != work.status.attempt or agent.phase not in _OBEYS:
            continue
        if _in_force(agent) != decided.steps:
            work.do(Send(pod.name, Command("interval", agent.attempt, every=decided.steps, reason=decided.reason)))
