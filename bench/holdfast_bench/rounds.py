"""Ours and peers in turns: one sample of ours, one of the peer, again and again, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .environments import Unavailable
from .link import Worker
from .machine import memory
from .progress import say
from .stats import median
from .systems import title

Sample = dict[str, float]


@dataclass
class Series:
    """What one system measured: its samples in order, and what it said when it was opened. `problem`: why there is nothing."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    opened: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    def all(self, key: str) -> list[float]:
        """One measured value of each sample."""
        return [s[key] for s in self.samples]

    def median(self, key: str) -> float:
        """Of one measured value."""
        return median(self.all(key))


@dataclass(frozen=True)
class Pair:
    """A peer and the samples of ours that alternated with its own."""

    ours: Series
    peer: Series


@dataclass(frozen=True)
class Plan:
    """`sample` asks a worker for one sample; `opening` is how its state is opened, `first` what is asked once before."""

    task: str
    opening: Mapping[str, Any]
    sample: Callable[[Worker], Sample]
    rounds: int
    warm_up: int = 2
    first: Sequence[str] = ()


def side_by_side(plan: Plan, ours: str, peers: Sequence[str]) -> tuple[Series, list[Pair]]:
    """Ours stays; the peers come one after the other. Without peers, ours alone. Raises Unavailable if ours cannot run."""
    with Worker(ours, plan.task) as worker:
        mine = _begin(plan, worker, Series(ours))
        if not peers:
            _rounds(plan, [(worker, mine)])
        pairs = [_beside(plan, worker, peer, mine) for peer in peers]
        if not mine.samples:
            _rounds(plan, [(worker, mine)])
        mine.facts = worker.ask("facts")
    return mine, pairs


def apart(plan: Plan, systems: Sequence[str], need: Mapping[str, int]) -> list[Series]:
    """Each system alone with its plain copy, where memory does not hold two of them. `need`: bytes, by system."""
    return [_alone(plan, name, need.get(name, 0)) for name in systems]


def _alone(plan: Plan, name: str, need: int) -> Series:
    series = Series(name)
    say(f"  {title(name)}")
    try:
        _check_memory(need)
        with Worker(name, plan.task) as worker:
            _begin(plan, worker, series)
            _rounds(plan, [(worker, series)])
            series.facts = worker.ask("facts")
    except Unavailable as error:
        _failed(series, error)
    return series


def _check_memory(need: int) -> None:
    free = memory("MemAvailable")
    if free < need:
        raise Unavailable(f"needs {need / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are available")


def _beside(plan: Plan, worker: Worker, name: str, mine: Series) -> Pair:
    say(f"  beside {title(name)}")
    pair = Pair(Series(mine.name, opened=mine.opened), Series(name))
    with ExitStack() as stack:
        try:
            other = stack.enter_context(Worker(name, plan.task))
            _begin(plan, other, pair.peer)
            _rounds(plan, [(worker, pair.ours), (other, pair.peer)])
            pair.peer.facts = other.ask("facts")
        except Unavailable as error:
            if worker.dead:
                raise
            _failed(pair.peer, error)
    mine.samples.extend(pair.ours.samples)
    return pair


def _failed(series: Series, error: Exception) -> None:
    series.problem = str(error)
    series.samples.clear()
    say(f"  {title(series.name)} cannot run: {error}")


def _begin(plan: Plan, worker: Worker, series: Series) -> Series:
    series.opened = worker.ask("open", **plan.opening)
    for verb in plan.first:
        worker.ask(verb)
    for _ in range(plan.warm_up):
        plan.sample(worker)
    return series


def _rounds(plan: Plan, systems: Sequence[tuple[Worker, Series]]) -> None:
    for _ in range(plan.rounds):
        for worker, series in systems:
            series.samples.append(plan.sample(worker))
