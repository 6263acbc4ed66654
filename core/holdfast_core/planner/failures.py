"""From what is seen to what it means: finding a failure, charging it to the budget, starting the next attempt."""

from __future__ import annotations

from dataclasses import replace

from .. import interval
from ..messages import MEMORY, RankState, Source
from . import budget, reasons
from .passing import Pass
from .types import Cause


def find(work: Pass) -> Cause | None:
    """The root failure of a running attempt, or None."""
    ranks = work.ranks
    return _corrupt(ranks) or _dead(ranks) or _too_slow(work, ranks)


def _corrupt(ranks: tuple[RankState, ...]) -> Cause | None:
    bad = next((r for r in ranks if r.corrupt), None)
    return Cause(reasons.CORRUPT_SNAPSHOT, f"rank {bad.rank} refused its snapshot: {bad.corrupt}") if bad else None


def _dead(ranks: tuple[RankState, ...]) -> Cause | None:
    """Deaths by signal come first: the other ranks' errors are what they saw of it."""
    dead = [r for r in ranks if r.state == "lost" or (r.state == "exited" and r.exit_code != 0)]
    if not dead:
        return None
    first = min(dead, key=lambda r: (r.signal is None, r.state != "lost", r.rank))
    others = tuple(_how(r) for r in dead if r is not first)
    evidence = (*first.log_tail[-5:], *others[:8])
    if first.signal is not None:
        return Cause(reasons.PROCESS_DIED, _how(first), evidence)
    if first.state == "lost":
        return Cause(reasons.CONTAINER_RESTARTED, f"rank {first.rank}: its container was restarted", evidence)
    return Cause(reasons.PROCESS_FAILED, _how(first), evidence)


def _how(rank: RankState) -> str:
    if rank.signal is not None:
        return f"rank {rank.rank} was killed by signal {rank.signal} after step {rank.step}"
    return f"rank {rank.rank} exited with code {rank.exit_code} after step {rank.step}"


def _too_slow(work: Pass, ranks: tuple[RankState, ...]) -> Cause | None:
    policy = work.job.policy
    if len(ranks) < work.job.world_size or not any(r.state == "running" for r in ranks):
        return None
    if work.status.running_since is None:
        if work.in_stage() <= policy.startup_deadline:
            return None
        return Cause(reasons.STARTUP_TIMEOUT, f"no step finished within {policy.startup_deadline:.0f} s of the start")
    idle = min(r.idle_seconds for r in ranks if r.state == "running")
    if idle <= policy.hang_deadline:
        return None
    evidence = tuple(f"rank {r.rank}: step {r.step}, idle for {r.idle_seconds:.0f} s" for r in ranks[:8])
    return Cause(reasons.HANG, f"no rank finished a step for {idle:.0f} s", evidence)


def handle(work: Pass, cause: Cause) -> None:
    """A failure in place: no pod is touched, processes are restarted from the freshest level."""
    source = work.status.source
    if cause.reason == reasons.CORRUPT_SNAPSHOT and source is not None:
        work.set(excluded=(*work.status.excluded, *_refused(work, source)))
    restarts, seen = work.status.restarts, work.status.terminated_at
    work.set(restarts=replace(restarts, process=restarts.process + 1))
    fail(work, cause, since=work.now if seen is None else seen)


def _refused(work: Pass, source: Source) -> list[Source]:
    """What ranks refused: the bytes in their slots. What filled a slot was verified on its way there, so its level is suspected
    only if the same rank refuses what was brought anew."""
    return [_suspect(work, source, rank.rank) for rank in work.ranks if rank.corrupt]


def _suspect(work: Pass, source: Source, rank: int) -> Source:
    slot = replace(source, level=MEMORY, rank=rank)
    brought = work.status.levels.get(rank, MEMORY if work.status.levels else source.level)
    return replace(slot, level=brought) if slot in work.status.excluded else slot


def fail(work: Pass, cause: Cause, since: float | None, *, in_place: bool = True) -> None:
    """End the attempt and gather for the next, or end the job if the budget is spent.

    `since` is when the fault is thought to have happened; None keeps the time of a fault that is still being recovered from.
    """
    status = work.status
    recent, stuck, give_up = budget.charge(status, work.job.policy, cause, work.now)
    work.set(recent_failures=recent, no_progress=stuck, no_progress_step=status.reached)
    if give_up:
        _end_for(work, give_up, cause)
        return
    started = status.stage not in ("gathering", "new")
    keep = status.failed_at is not None
    work.set(
        cause=status.cause if keep and status.cause else cause,
        failed_at=status.failed_at if keep else (since if since is not None else work.now),
        lost_at_step=status.lost_at_step if keep else status.step,
        failures=status.failures if keep and status.stage != "draining" else interval.remember(status.failures, work.now),
        phase="Recovering" if status.first_step_at is not None else status.phase,
        attempt=status.attempt + 1 if started else status.attempt,
        running_since=None,
    )
    if status.stage != "gathering":
        work.stage("gathering", f"{cause.reason}: {cause.message}")
        work.emit(cause.reason, f"{cause.message}{_tail(cause)}", warning=True)
    work.look_again = 0.0  # the decision is kept by then: survivors are stopped at once


def exclude(work: Pass, source: Source, why: str) -> None:
    """Try again without a source that proved unusable. Not a failure of the job: nothing is charged."""
    doubted = tuple(s for s in work.status.doubted if s != source)
    work.set(excluded=(*work.status.excluded, source), doubted=doubted)
    _again(work, why)


def doubt(work: Pass, source: Source, why: str) -> None:
    """Try again with it, once: it was out of reach, which says nothing about what it holds."""
    work.set(doubted=(*work.status.doubted, source))
    _again(work, why)


def put_off(work: Pass, source: Source, why: str) -> None:
    """Let the next level have its turn: it was out of reach twice. Unlike an excluded one it stays in doubt."""
    work.set(excluded=(*work.status.excluded, source))
    _again(work, why)


def ask_again(work: Pass) -> bool:
    """Whether sources were put off that are better than starting from scratch: they have another turn, at a charge, so that it
    ends. What they hold is intact for all that is known, and an attempt that starts from scratch would make it void."""
    back = [s for s in work.status.excluded if s in work.status.doubted]
    if not back:
        return False
    work.set(excluded=tuple(s for s in work.status.excluded if s not in back), doubted=())
    names = ", ".join(sorted({f"step {s.step} at {s.level}" for s in back}))
    text = f"{names} is out of reach, and nothing else holds a step: tried again; can the pods reach each other?"
    work.emit(reasons.SOURCE_REJECTED, text, warning=True)
    fail(work, Cause(reasons.POD_UNREACHABLE, text), since=None)
    work.set(message=text)
    return True


def _again(work: Pass, why: str) -> None:
    work.set(attempt=work.status.attempt + 1)
    work.stage("gathering", why)
    work.look_again = 0.0


def end(work: Pass, reason: str, message: str) -> None:
    """The job fails for good."""
    work.set(phase="Failed", completed_at=work.now, failed_at=None)
    work.stage("done", f"{reason}: {message}")
    work.emit(reasons.JOB_FAILED, f"{reason}: {message}", warning=True)


def _end_for(work: Pass, limit: str, cause: Cause) -> None:
    policy, status = work.job.policy, work.status
    if limit == reasons.NO_PROGRESS:
        text = f"{status.no_progress} failures in a row without a new step after step {status.reached}"
    else:
        text = f"{len(status.recent_failures)} failures within {policy.restart_window:.0f} s"
    work.set(cause=cause)
    end(work, limit, f"{text}; last: {cause.message}{_tail(cause)}")


def _tail(cause: Cause) -> str:
    return f" [{' | '.join(cause.evidence[:6])}]" if cause.evidence else ""
