"""The coordinator: the real `Decisions`, as a value. An event puts it together, lets it decide, and takes it apart again.

Time passes in leaps only. Whatever happens between them happens at moment 0, and what ran out during a leap has run out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from holdfast_core.config import StoreConfig
from holdfast_core.messages import Order, Reached
from holdfast_core.timeline import Copy
from holdfast_sidecar.group.decisions import Action, Decisions, StoreLine, Upload
from holdfast_sidecar.group.protect import AMNESTY_SECONDS, BLAMES, Protect
from holdfast_sidecar.group.resync import Resync

from . import rules
from .world import Prepare, World

SOON, AWAY, AMNESTY, LONG = 9.0, 20.0, 100.0, 1000.0  # seconds: pauses are over; who is away was so for long; ...; rounds end
STORE = "pvc"
_ROUNDS = 5  # numbers of rounds are counted round the clock: words of fewer rounds than these are on the wire at a time
_MOST_FAILURES = 4  # more of them make no pause longer
_OBJECTS = (Decisions, Protect, Resync, StoreLine, Upload)
Frozen = Any
Decided = tuple[Frozen, tuple[Order, ...]]


def create(world: World, prepare: Prepare, stored: Copy | None, rounds: int) -> Frozen:
    """As `Lifecycle._open_coordinator` does; what stores hold is looked up at once. `rounds`: the number of the last one that
    an earlier coordinator in this pod began: the clock makes the next one's higher."""
    configs = [StoreConfig(STORE, "file:///x", every_steps=1)] * world.stores
    decisions = Decisions(prepare.attempt, prepare.members, prepare.history, world.slots, configs, world.peers)
    decisions.protect._rounds = rounds
    if world.stores:
        decisions.found(STORE, stored)
    return _Event(decisions).result()[0]


def joined(frozen: Frozen, index: int) -> Decided:
    """A member connects: what it is told."""
    event = _Event(rules.thaw(frozen))
    return event.result(event.decisions.joined(index))


def left(frozen: Frozen, index: int) -> Frozen:
    """Its connection is gone."""
    event = _Event(rules.thaw(frozen))
    event.decisions.left(index, 0.0)
    return event.result()[0]


def heard(frozen: Frozen, index: int, word: Reached) -> Decided:
    """`Coordinator._listen`: what all are told. The next tick is never far away."""
    event = _Event(rules.thaw(frozen))
    decisions = event.decisions
    return event.result([*decisions.reached(index, word, 0.0), *decisions.tick(0.0, decisions.lines)])


def passed(frozen: Frozen, seconds: float) -> Decided:
    """Time passes."""
    event = _Event(rules.thaw(frozen), seconds)
    return event.result(event.decisions.tick(seconds, event.decisions.lines))


def stored(frozen: Frozen, copy: Copy) -> Decided:
    """A step's manifest is written; `Coordinator._commit`."""
    event = _Event(rules.thaw(frozen))
    decisions = event.decisions
    return event.result([decisions.stored(STORE, copy), *decisions.tick(0.0, decisions.lines)])


def refused(frozen: Frozen) -> Frozen:
    """It could not be written."""
    event = _Event(rules.thaw(frozen))
    event.decisions.failed(STORE, 0.0)
    return event.result()[0]


def rounds(frozen: Frozen | None) -> int:
    """The number of the last round that a coordinator began."""
    return int(rules.thaw(frozen).protect._rounds) if frozen is not None else 0


class Waits(NamedTuple):
    """What a coordinator waits for: the end of a pause, to forgive a pod, a member that is away, the end of a round."""

    pause: bool
    leaves_out: bool
    misses: bool
    busy: bool


def waits(frozen: Frozen) -> Waits:
    """As of now."""
    decisions = rules.thaw(frozen)
    protect, lines = decisions.protect, decisions.lines.values()
    pause = protect._not_before > 0 or any(line.retry_at > 0 for line in lines)
    return Waits(pause, bool(protect.without), bool(decisions._absent), protect._round is not None)


def committing(frozen: Frozen) -> tuple[Copy, frozenset[int]] | None:
    """The step whose manifest is to be written, and the ranks whose shards it names."""
    decisions = rules.thaw(frozen)
    uploads = (line.upload for line in decisions.lines.values() if line.upload and line.upload.committing)
    return next(((u.copy, frozenset(u.shards)) for u in uploads), None)


class _Event:
    """One event: the coordinator put together, and taken apart again with all that time has made equal made equal."""

    def __init__(self, decisions: Decisions, now: float = 0.0) -> None:
        self.decisions, self._now, self._rounds = decisions, now, decisions.protect._rounds

    def result(self, actions: Iterable[Action] = ()) -> Decided:
        """The coordinator as a value, and its orders. A `Commit` shows in the value: see `committing`."""
        number = self._count(self.decisions.protect)
        orders = (a for a in actions if isinstance(a, Order))
        said = tuple(replace(o, round=number) if o.kind == "replicate" and o.round != self._rounds else o for o in orders)
        self._settle()
        return rules.freeze(self.decisions, _OBJECTS), said

    def _count(self, protect: Protect) -> int:
        """A round that has just begun gets the next number."""
        if protect._rounds != self._rounds:
            protect._rounds = self._rounds % _ROUNDS + 1
            if protect._round is not None:
                protect._round = replace(protect._round, number=protect._rounds)
        return protect._rounds

    def _settle(self) -> None:
        decisions, protect = self.decisions, self.decisions.protect
        protect._failures = min(protect._failures, _MOST_FAILURES)
        protect._blamed = protect._blamed[-BLAMES:]
        protect._not_before = self._rebased(protect._not_before)
        protect.without = {i: self._rebased(t) for i, t in protect.without.items()}
        if protect._round is not None:
            protect._round = replace(protect._round, started=0.0)
        decisions._absent = {i: self._rebased(t) for i, t in decisions._absent.items()}
        for line in decisions.lines.values():
            line.started, line.retry_at = self._rebased(line.started), self._rebased(line.retry_at)
            line.failures = min(line.failures, _MOST_FAILURES)
            line.upload = replace(line.upload, started=0.0) if line.upload else None

    def _rebased(self, moment: float) -> float:
        """A moment as seen after a leap. What lies behind lies behind; pauses of any length are over after the next leap."""
        if moment == float("-inf"):
            return moment
        left = moment - self._now
        return 0.0 if left <= 0 else (AMNESTY_SECONDS if left > SOON else 0.5)
