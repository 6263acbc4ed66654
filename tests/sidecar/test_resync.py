"""Ranks that hold different steps meet again: the real slot rule and the real coordinator, with late messages."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from holdfast_core.arena import NO_STEP, Slot, SlotState, choose_slot
from holdfast_core.messages import MEMORY, Member, Order, Reached
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar.group.decisions import Decisions
from holdfast_sidecar.group.resync import PATIENCE, Resync

SLOTS = 3
TICK = 0.1  # seconds


@dataclass
class Rank:
    number: int
    speed: float  # chance to finish a step in a tick
    slots: list[Slot] = field(default_factory=lambda: [Slot(i, SlotState.EMPTY) for i in range(SLOTS)])
    step: int = -1
    committed: int = NO_STEP
    floor: int = NO_STEP
    inbox: list[tuple[float, Order]] = field(default_factory=list)

    def train(self, now_ns: int) -> Reached:
        self.step += 1
        copy = Copy(self.step, 1)
        index = choose_slot(self.slots, self.committed, now_ns, self.floor) if self.step >= self.floor else None
        if index is None:
            return Reached(1, MEMORY, self.number, copy, error="no free slot")
        self.slots[index] = Slot(index, SlotState.SEALED, self.step, 1)
        return Reached(1, MEMORY, self.number, copy)

    def obey(self, now: float) -> None:
        while self.inbox and self.inbox[0][0] <= now:
            order = self.inbox.pop(0)[1]
            if order.kind == "committed":
                self.committed = order.copy.step
            elif order.kind == "resync":
                self.floor = order.copy.step

    def holds(self, step: int) -> bool:
        return any(s.state is SlotState.SEALED and s.step == step for s in self.slots)


def simulate(seed: int, speeds: list[float], *, delay: float, lock_step: bool, ticks: int = 3000) -> tuple[int, int]:
    """Newest committed step, and the slowest rank's step. Checks on the way that a committed step is with every rank."""
    rng = random.Random(seed)
    ranks = [Rank(i, speed) for i, speed in enumerate(speeds)]
    group = Decisions(1, [Member(i, f"p{i}", "h", 1, i, 1) for i in range(len(ranks))], (Resume(1, -1),), SLOTS, [])
    for rank in ranks:
        group.joined(rank.number)
    to_group: list[tuple[float, int, Reached]] = []
    for tick in range(ticks):
        now = tick * TICK
        for rank in ranks:
            rank.obey(now)
            _lease(rank, rng, now)
        moving = [r for r in ranks if lock_step or rng.random() < r.speed]
        to_group += [(now + rng.uniform(0, delay), r.number, r.train(int(now * 1e9))) for r in moving]
        to_group.sort(key=lambda m: (m[1], m[2].copy.step))  # each connection keeps its order
        due, to_group = [m for m in to_group if m[0] <= now], [m for m in to_group if m[0] > now]
        orders = [o for _, i, message in due for o in group.reached(i, message, now)] + group.tick(now, [])
        for rank in ranks:
            rank.inbox += [(now + rng.uniform(0, delay), o) for o in orders if isinstance(o, Order)]
            rank.inbox = _in_order(rank.inbox)
        if group.committed is not None:
            assert all(r.holds(group.committed.step) for r in ranks), f"step {group.committed.step} was overwritten"
    return group.committed.step if group.committed else -1, min(r.step for r in ranks)


def _in_order(inbox: list[tuple[float, Order]]) -> list[tuple[float, Order]]:
    """A connection delivers in order: nothing overtakes."""
    latest, kept = 0.0, []
    for at, order in inbox:
        latest = max(latest, at)
        kept.append((latest, order))
    return kept


def _lease(rank: Rank, rng: random.Random, now: float) -> None:
    """Now and then an upload reads the committed slot, for a time that differs from rank to rank."""
    for index, slot in enumerate(rank.slots):
        if slot.step == rank.committed and slot.state is SlotState.SEALED and rng.random() < 0.1 and slot.lease_until == 0:
            until = int((now + rng.uniform(0, 1)) * 1e9)
            rank.slots[index] = Slot(index, slot.state, slot.step, 1, lease_until=until)


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_ranks_in_lock_step_stay_fresh_whatever_is_leased(seed: int, delay: float) -> None:
    print(f"seed {seed}")
    newest, slowest = simulate(seed, [1.0] * 3, delay=delay, lock_step=True)
    assert newest > slowest - 60, "the newest common step is seconds old at most"


@pytest.mark.parametrize("seed", range(8))
def test_ranks_that_drift_apart_commit_again_and_again(seed: int) -> None:
    print(f"seed {seed}")
    newest, slowest = simulate(seed, [0.9, 0.8, 0.85], delay=0.1, lock_step=False)
    assert newest > slowest * 0.6


def test_a_step_to_meet_at_is_named_only_after_a_while_and_lies_ahead_of_everybody() -> None:
    resync = Resync([0, 1])
    resync.sealed(0, 14)
    resync.skipped(1, 17, now=5.0)
    assert resync.meet(5.0 + PATIENCE / 2) is None
    first = resync.meet(5.0 + PATIENCE)
    assert first is not None
    assert first > 17
    resync.skipped(0, first - 1, 8.0)
    assert resync.meet(8.0 + PATIENCE) is None, "rank 1 has not got there yet"
    resync.skipped(1, first + 3, 10.0)
    resync.skipped(0, first + 5, 10.0)
    second = resync.meet(10.0 + PATIENCE)
    assert second is not None
    assert second - (first + 5) > first - 17, "further ahead each time"


def test_nothing_is_named_while_a_rank_has_said_nothing() -> None:
    resync = Resync([0, 1])
    resync.skipped(0, 3, now=0.0)
    assert resync.meet(100.0) is None


def test_a_rank_that_connects_again_learns_where_to_meet() -> None:
    group = Decisions(1, [Member(i, f"p{i}", "h", 1, i, 1) for i in range(2)], (Resume(1, -1),), SLOTS, [])
    for i in range(2):
        group.joined(i)
        group.reached(i, Reached(1, MEMORY, i, Copy(4 + i, 1)), 0.0)
        group.reached(i, Reached(1, MEMORY, i, Copy(9, 1), error="no free slot"), 0.0)
    orders = group.tick(PATIENCE, [])
    assert [o.kind for o in orders] == ["resync"]
    assert group.joined(1)[-1] == orders[0]
    below = Copy(orders[0].copy.step - 1, 1)
    assert [a for i in range(2) for a in group.reached(i, Reached(1, MEMORY, i, below), 9.0)] == []
