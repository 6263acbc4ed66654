"""The coordinator's decisions, without any I/O."""

from __future__ import annotations

import random

import pytest
from holdfast_core.arena import NO_STEP, Slot, SlotState, choose_slot
from holdfast_core.config import StoreConfig
from holdfast_core.durable import Shard
from holdfast_core.messages import MEMORY, Member, Order, Reached
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar.group.decisions import ABSENT_SECONDS, Commit, Decisions

PVC = StoreConfig("pvc", "file:///x", every_seconds=60)
S3 = StoreConfig("s3", "s3://b/x", every_steps=10)


def member(index: int) -> Member:
    return Member(index, f"p{index}", "127.0.0.1", 1, index, 1)


def decisions(*stores: StoreConfig, members: int = 2, slots: int = 3, attempt: int = 1) -> Decisions:
    made = Decisions(attempt, [member(i) for i in range(members)], (Resume(attempt, -1),), slots, stores)
    for store in stores:
        made.found(store.name, None)
    for index in range(members):
        made.joined(index)
    return made


def seal(d: Decisions, step: int, now: float = 0.0, ranks: tuple[int, ...] = (0, 1)) -> list[object]:
    return [a for r in ranks for a in d.reached(r, Reached(d.attempt, MEMORY, r, Copy(step, d.attempt)), now)]


def upload(d: Decisions, store: str, copy: Copy, rank: int, now: float = 0.0, error: str = "") -> list[object]:
    shard = None if error else Shard(rank, f"r{rank}", 1, 1)
    return list(d.reached(rank, Reached(d.attempt, store, rank, copy, shard, error), now))


def names(orders: list[Order]) -> list[tuple[str, str, int]]:
    return [(o.kind, o.level, o.copy.step) for o in orders]


def test_a_step_is_committed_once_when_the_last_rank_sealed_it() -> None:
    d = decisions()
    assert seal(d, 5, ranks=(0,)) == []
    assert seal(d, 5, ranks=(0,)) == []
    assert seal(d, 5, ranks=(1,)) == [Order("committed", 1, MEMORY, Copy(5, 1))]
    assert seal(d, 5) == []


@pytest.mark.parametrize(
    ("message", "index"),
    [
        (Reached(0, MEMORY, 1, Copy(5, 1)), 1),  # an old attempt
        (Reached(1, MEMORY, 1, Copy(5, 1)), 0),  # another pod's rank
        (Reached(1, MEMORY, 7, Copy(5, 1)), 1),  # no such rank
        (Reached(1, MEMORY, 1, Copy(5, 0)), 1),  # a copy of an abandoned timeline
        (Reached(1, "nowhere", 1, Copy(5, 1)), 1),
    ],
)
def test_what_is_not_of_this_attempt_changes_nothing(message: Reached, index: int) -> None:
    d = decisions()
    seal(d, 5, ranks=(0,))
    assert d.reached(index, message, 0.0) == []
    assert d.committed is None


def test_commits_never_go_back() -> None:
    d = decisions()
    seal(d, 7)
    assert seal(d, 6) == []
    assert d.committed == Copy(7, 1)


def test_ranks_that_never_agree_do_not_fill_the_memory() -> None:
    d = decisions()
    for step in range(1000):
        seal(d, step, ranks=(0,))
    assert len(d._sealed) <= 65


def test_a_store_gets_the_first_committed_step_and_then_keeps_its_pace() -> None:
    d = decisions(PVC)
    seal(d, 1)
    assert names(d.tick(100.0, ["pvc"])) == [("persist", "pvc", 1)]
    assert d.tick(101.0, ["pvc"]) == []
    upload(d, "pvc", Copy(1, 1), 0)
    (commit,) = upload(d, "pvc", Copy(1, 1), 1, now=103.0)
    assert commit == Commit("pvc", Copy(1, 1), (Shard(0, "r0", 1, 1), Shard(1, "r1", 1, 1)), 3.0)
    d.stored("pvc", Copy(1, 1))
    seal(d, 2)
    assert d.tick(159.0, ["pvc"]) == []
    assert names(d.tick(160.0, ["pvc"])) == [("persist", "pvc", 2)]


@pytest.mark.parametrize(("held", "due"), [(None, 9), (Copy(4, 1), 14), (Copy(9, 1), 19)])
def test_every_steps_counts_from_what_the_store_holds(held: Copy | None, due: int) -> None:
    d = decisions(S3)
    d.found("s3", held)
    seal(d, due - 1)
    assert d.tick(0.0, ["s3"]) == []
    seal(d, due)
    assert names(d.tick(0.0, ["s3"])) == [("persist", "s3", due)]


def test_an_unhealthy_or_unknown_store_is_left_alone_and_caught_up_later() -> None:
    d = Decisions(1, [member(0)], (), 3, [PVC])
    seal(d, 1, ranks=(0,))
    assert d.tick(0.0, ["pvc"]) == []  # not known yet what it holds
    d.found("pvc", None)
    assert d.tick(0.0, []) == []
    assert names(d.tick(0.0, ["pvc"])) == [("persist", "pvc", 1)]


def test_a_failed_upload_is_tried_again_with_the_newest_step_after_a_growing_pause() -> None:
    d = decisions(PVC)
    seal(d, 1)
    now, pauses = 0.0, []
    for step in range(2, 8):
        (order,) = d.tick(now, ["pvc"])
        assert order.copy.step == step - 1
        upload(d, "pvc", order.copy, 0, now, error="disk full")
        seal(d, step)
        start = now
        while not (line := d.lines["pvc"]).wants(d.committed, now):  # type: ignore[arg-type]
            now += 0.5
        assert line.upload is None
        pauses.append(now - start)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 1.0
    assert pauses[-1] <= 10.0


def test_answers_to_an_upload_that_was_given_up_are_ignored() -> None:
    d = decisions(PVC)
    seal(d, 1)
    d.tick(0.0, ["pvc"])
    upload(d, "pvc", Copy(1, 1), 0, error="x")
    seal(d, 2)
    d.tick(5.0, ["pvc"])
    assert upload(d, "pvc", Copy(1, 1), 1) == []
    assert d.lines["pvc"].upload is not None
    assert not d.lines["pvc"].upload.shards


def test_an_upload_does_not_wait_for_a_member_that_is_gone() -> None:
    d = decisions(PVC)
    seal(d, 1)
    d.tick(0.0, ["pvc"])
    upload(d, "pvc", Copy(1, 1), 0)
    d.left(1, 2.0)
    d.tick(2.0 + ABSENT_SECONDS, ["pvc"])
    assert d.lines["pvc"].upload is not None
    d.tick(2.1 + ABSENT_SECONDS, [])
    assert d.lines["pvc"].upload is None


def test_a_member_that_comes_back_learns_what_it_missed() -> None:
    d = decisions(PVC)
    seal(d, 1)
    d.tick(0.0, ["pvc"])
    upload(d, "pvc", Copy(1, 1), 0)
    d.left(1, 1.0)
    assert names(d.joined(1)) == [("committed", MEMORY, 1), ("persist", "pvc", 1)]
    assert names(d.joined(0)) == [("committed", MEMORY, 1)]


def test_flush_brings_the_newest_step_to_every_store_at_once() -> None:
    d = decisions(PVC, StoreConfig("manual", "file:///y"), slots=4)
    seal(d, 1)
    d.tick(0.0, ["pvc", "manual"])
    for rank in (0, 1):
        upload(d, "pvc", Copy(1, 1), rank)
    d.stored("pvc", Copy(1, 1))
    seal(d, 2)
    assert d.tick(1.0, ["pvc", "manual"]) == []
    d.flush(1.0)
    assert names(d.tick(1.0, ["pvc", "manual"])) == [("persist", "pvc", 2), ("persist", "manual", 2)]


def test_flush_waits_for_an_upload_in_flight_and_takes_a_late_last_step_too() -> None:
    d = decisions(PVC)
    seal(d, 1)
    d.tick(0.0, ["pvc"])
    seal(d, 2)
    d.flush(1.0)
    seal(d, 3, now=2.0)
    for rank in (0, 1):
        upload(d, "pvc", Copy(1, 1), rank)
    d.stored("pvc", Copy(1, 1))
    assert names(d.tick(30.0, ["pvc"])) == [("persist", "pvc", 3)]


def test_uploads_leave_the_writer_two_slots() -> None:
    d = decisions(StoreConfig("a", "file:///a", every_steps=1), StoreConfig("b", "file:///b", every_steps=3))
    seal(d, 1)
    assert names(d.tick(0.0, ["a", "b"])) == [("persist", "a", 1)]
    seal(d, 2)
    assert d.tick(0.0, ["a", "b"]) == []  # b is due with step 2, but a second leased slot would stop the snapshots
    d.lines["b"].flush_step = 2
    assert names(d.tick(0.0, ["a", "b"])) == [("persist", "b", 1)]  # the slot that is leased anyway


@pytest.mark.parametrize("slots", [3, 4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_uploads_never_stop_snapshots(slots: int, seed: int) -> None:
    """Two ranks that train in step, uploads of random length to two stores: no snapshot is ever skipped."""
    rng = random.Random(seed)
    d = decisions(StoreConfig("a", "file:///a", every_steps=1), StoreConfig("b", "file:///b", every_seconds=3), slots=slots)
    ring = [Slot(i, SlotState.EMPTY) for i in range(slots)]
    leased: dict[str, tuple[Copy, int, float]] = {}
    for step in range(300):
        now = float(step)
        busy = {index for _, index, _ in leased.values()}
        view = [Slot(s.index, s.state, s.step, 1, lease_until=int(2e18) if s.index in busy else 0) for s in ring]
        index = choose_slot(view, d.committed.step if d.committed else NO_STEP, 10**18)
        assert index is not None, (seed, step)
        ring[index] = Slot(index, SlotState.SEALED, step, 1)
        seal(d, step, now)
        for name in [n for n, (_, _, end) in leased.items() if end <= now]:
            copy, _, _ = leased.pop(name)
            for rank in (0, 1):
                upload(d, name, copy, rank, now)
            d.stored(name, copy)
        for order in d.tick(now, ["a", "b"]):
            held = [s.index for s in ring if s.step == order.copy.step]
            assert held, "an ordered step is a step that is there"
            leased[order.level] = (order.copy, held[0], now + rng.randint(1, 20))
