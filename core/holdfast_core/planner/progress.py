"""Follow what the sidecars report: steps, levels, finished recoveries, goodput."""

from __future__ import annotations

from ..messages import MEMORY, PEERS
from ..timeline import Copy, is_valid
from . import reasons
from .passing import Pass
from .types import LevelStatus, Recovery


def update(work: Pass) -> None:
    """Bring the status' view of steps and levels up to date."""
    _levels(work)
    _steps(work)
    _goodput(work)


def _levels(work: Pass) -> None:
    """Newest valid committed step of each level. A level goes back when its step is gone (RAM lost, store emptied)."""
    seen: dict[str, Copy] = {}
    for agent in work.agents:
        pairs = [(MEMORY, agent.committed), (PEERS, agent.protected), *((s.name, s.committed) for s in agent.stores)]
        for level, copy in pairs:
            if copy and is_valid(copy, work.status.history) and copy > seen.get(level, Copy(-1, 0)):
                seen[level] = copy
    levels = dict(work.status.checkpoints)
    for level, copy in seen.items():
        if level not in levels or levels[level].step != copy.step:
            levels[level] = LevelStatus(copy.step, work.now)
    work.set(checkpoints=levels)


def _steps(work: Pass) -> None:
    ranks = work.ranks
    if work.status.stage not in ("running", "draining", "completing") or len(ranks) < work.job.world_size:
        return
    slowest = min(ranks, key=lambda r: r.step)
    if slowest.step < 0:
        return
    start = work.status.source.step if work.status.source else -1
    if slowest.step > start and work.status.running_since is None:
        _first_step(work, work.now - max(r.idle_seconds for r in ranks), start)
    work.set(step=slowest.step, reached=max(work.status.reached, slowest.step))


def _first_step(work: Pass, at: float, start: int) -> None:
    """The first step of an attempt is finished: training runs, and a recovery is complete."""
    work.set(running_since=at, phase="Running", first_step_at=work.status.first_step_at or at)
    status = work.status
    if status.cause is None or status.failed_at is None:
        return
    source = status.source
    recovery = Recovery(
        attempt=status.attempt,
        cause=status.cause.reason,
        message=status.cause.message,
        level=source.level if source else "none",
        step=start,
        lost_steps=max(0, status.lost_at_step - start),
        seconds=round(max(0.0, at - status.failed_at), 3),
        time=at,
        evidence=status.cause.evidence,
    )
    lost = status.lost_seconds + recovery.seconds + recovery.lost_steps * _step_seconds(work)
    work.set(last_recovery=recovery, recoveries=status.recoveries + 1, lost_seconds=lost, failed_at=None)
    work.emit(reasons.RECOVERED, describe(recovery))


def describe(recovery: Recovery) -> str:
    """A recovery in one sentence."""
    origin = "from scratch" if recovery.step < 0 else f"from {recovery.level} at step {recovery.step}"
    return (
        f"attempt {recovery.attempt} resumed {origin} after {recovery.cause}: "
        f"{recovery.lost_steps} steps lost, {recovery.seconds:.1f} s from fault to next step ({recovery.message})"
    )


def _step_seconds(work: Pass) -> float:
    """Mean seconds a step since training began, lost time left out."""
    status = work.status
    if status.first_step_at is None or status.reached <= 0:
        return 0.0
    return max(0.0, (work.now - status.first_step_at - status.lost_seconds) / (status.reached + 1))


def _goodput(work: Pass) -> None:
    """Share of the time since the first step that was not lost to faults, recoveries and repeated steps."""
    status = work.status
    if status.first_step_at is None or status.completed_at is not None:
        return
    elapsed = max(1e-9, work.now - status.first_step_at)
    current = work.now - status.failed_at if status.failed_at is not None else 0.0
    work.set(goodput=round(min(1.0, max(0.0, 1.0 - (status.lost_seconds + current) / elapsed)), 4))
