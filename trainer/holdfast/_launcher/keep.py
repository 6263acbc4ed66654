"""Keeping processes alive through a failure: which of them, how long they are waited for, and why one is not kept.

Their scripts opted in with `holdfast.resilient`. Nothing here is trusted to work: whoever does not answer within the bound is
killed, and a new process takes the seat.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

from holdfast_core import local

from .._log import note
from .contract import environment
from .process import RankProcess, Seat
from .warm import read_at_start

Until = Callable[[Callable[[], bool], float], Awaitable[None]]
DEFAULT_SECONDS = 5.0
MOST_SECONDS = 8.0  # the sidecar gives a stop ten
_AFTER_KILL_SECONDS = 10.0  # a killed process that is not gone by then hangs in the kernel


def bound(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that a process has to leave its attempt, and to come back in the next one; 0: none is kept."""
    text = environ.get("HOLDFAST_REBUILD_SECONDS", "")
    try:
        seconds = float(text or DEFAULT_SECONDS)
    except ValueError:
        note(f"HOLDFAST_REBUILD_SECONDS={text!r} is not a number of seconds: taking {DEFAULT_SECONDS:.0f}")
        return DEFAULT_SECONDS
    return min(MOST_SECONDS, max(0.0, seconds))


async def parked(asked: Sequence[RankProcess], until: Until, seconds: float) -> None:
    """Wait until each one has left its attempt. Who has not in time is killed; so is who is an ordinary process by now."""
    await until(lambda: not any(r.busy and r.resilient for r in asked), seconds)
    late = [r for r in asked if r.busy]
    for rank in late:
        why = f"did not leave its attempt within {seconds:.3g} s" if rank.resilient else "had left holdfast.resilient"
        note(f"rank {rank.seat.rank} (pid {rank.pid}) is not kept: it {why}; SIGKILL")
    await kill(late, until)


async def resume(ranks: Sequence[RankProcess], launch: local.Launch, until: Until, seconds: float) -> dict[int, RankProcess]:
    """Send the parked processes into the new attempt; those that are at work in it, by local rank. The others are killed."""
    waiting = [r for r in ranks if r.alive and r.parked]
    asked = [r for r in waiting if _ask(r, launch)]
    await until(lambda: all(r.answered or not r.alive for r in asked), seconds)
    for rank in asked:
        if rank.alive and not rank.answered:
            note(f"rank {rank.seat.rank} (pid {rank.pid}) is not kept: it did not come back within {seconds:.3g} s; SIGKILL")
    kept = {r.seat.local_rank: r for r in asked if r.alive and r.answered}
    await kill([r for r in ranks if r not in kept.values()], until)
    return kept


def _ask(rank: RankProcess, launch: local.Launch) -> bool:
    env = environment(os.environ, launch, rank.seat.local_rank)
    problem = ""
    if Seat.of(launch, rank.seat.local_rank) != rank.seat:
        problem = "rank, world size or number of processes changed"
    elif name := read_at_start(env, rank.env):
        problem = f"{name} changed, which is read when a process starts"
    elif not rank.resume(env):
        problem = "it could not be told of the new attempt"
    if problem:
        note(f"rank {rank.seat.rank} (pid {rank.pid}) is not kept: {problem}")
    return not problem


async def kill(ranks: Sequence[RankProcess], until: Until) -> None:
    """SIGKILL, and wait until they are reaped; bounded."""
    for rank in ranks:
        if rank.alive:
            rank.send(signal.SIGKILL)
    await until(lambda: not any(r.alive for r in ranks), _AFTER_KILL_SECONDS)
