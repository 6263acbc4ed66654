"""The arena's layout: a slot is there as a whole or not at all, and damage is noticed."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable

import pytest
from holdfast_core import arena, local
from holdfast_core.arena import ArenaError, ArenaHeader, Slot, SlotState

HEADER = ArenaHeader("0123-uid", rank=5, world_size=8, slots=3, slot_bytes=2 * arena.PAGE)


def formatted(attempt: int = 1) -> memoryview:
    buf = memoryview(bytearray(HEADER.total_bytes))
    arena.format_arena(buf, HEADER, attempt)
    return buf


def write(buf: memoryview, index: int, step: int, data: bytes = b"weights", attempt: int = 1) -> None:
    area = arena.begin(buf, HEADER, index, len(data))
    area[:] = data
    arena.seal(buf, HEADER, index, step=step, attempt=attempt, data_bytes=len(data), manifest=b"{}")


def test_what_was_sealed_is_read_back():
    buf = formatted()
    write(buf, 1, 7)
    slot = arena.read_slot(buf, 1)
    assert (slot.state, slot.step, slot.attempt) == (SlotState.SEALED, 7, 1)
    assert bytes(arena.slot_data(buf, HEADER, slot)) == b"weights"
    assert arena.slot_manifest(buf, HEADER, slot) == b"{}"
    assert arena.read_header(buf) == HEADER


def test_a_crash_before_the_seal_leaves_the_slot_unsealed_and_the_others_whole():
    buf = formatted()
    write(buf, 0, 1)
    write(buf, 1, 2)
    arena.begin(buf, HEADER, 0, 100)[:50] = bytes(50)
    assert arena.read_slot(buf, 0).state is SlotState.WRITING
    assert arena.read_slot(buf, 1).step == 2


def test_the_sequence_tells_two_snapshots_in_one_slot_apart():
    buf = formatted()
    write(buf, 0, 1)
    first = arena.read_slot(buf, 0).sequence
    write(buf, 0, 2)
    assert arena.read_slot(buf, 0).sequence != first


def test_a_fenced_attempt_cannot_seal():
    buf = formatted()
    area = arena.begin(buf, HEADER, 0, 4)
    area[:] = b"late"
    arena.set_fence(buf, 2)
    with pytest.raises(ArenaError, match="fenced"):
        arena.seal(buf, HEADER, 0, step=1, attempt=1, data_bytes=4, manifest=b"{}")
    assert arena.read_slot(buf, 0).state is not SlotState.SEALED


def test_too_big_a_snapshot_says_which_setting_must_grow():
    buf = formatted()
    with pytest.raises(ArenaError, match="slot of 8192"):
        arena.begin(buf, HEADER, 0, HEADER.slot_bytes + 1)
    with pytest.raises(ArenaError, match=r"memory\.size"):
        arena.seal(buf, HEADER, 0, step=1, attempt=1, data_bytes=HEADER.slot_bytes, manifest=b"{}")


@pytest.mark.parametrize("offset", range(8, 104))
def test_each_byte_of_the_header_is_protected(offset):
    buf = formatted()
    buf[offset] ^= 1
    with pytest.raises(ArenaError):
        arena.read_header(buf)


@pytest.mark.parametrize("offset", range(8, 48))
def test_each_byte_of_a_slot_header_is_protected(offset):
    buf = formatted()
    write(buf, 0, 1)
    buf[arena.PAGE + offset] ^= 0x10
    with pytest.raises(ArenaError):
        arena.slot_manifest(buf, HEADER, arena.read_slot(buf, 0))


def test_a_file_cut_short_is_refused():
    buf = formatted()
    with pytest.raises(ArenaError, match="cut short"):
        arena.read_header(buf[: HEADER.total_bytes - 1])
    with pytest.raises(ArenaError, match="only 10 bytes"):
        arena.read_header(buf[:10])


def test_a_flipped_manifest_is_refused():
    buf = formatted()
    write(buf, 2, 1)
    buf[HEADER.region(2) + len(b"weights")] ^= 1
    with pytest.raises(ArenaError, match="manifest"):
        arena.slot_manifest(buf, HEADER, arena.read_slot(buf, 2))


def sealed(index: int, step: int, lease: int = 0) -> Slot:
    return Slot(index, SlotState.SEALED, step, lease_until=lease)


@pytest.mark.parametrize(
    ("slots", "committed", "expected", "why"),
    [
        ([Slot(0, SlotState.EMPTY), sealed(1, 5)], -1, 0, "an empty slot first"),
        ([Slot(0, SlotState.WRITING), sealed(1, 5)], -1, 0, "a torn slot is free"),
        ([sealed(0, 4), sealed(1, 5), sealed(2, 6)], 6, 0, "the oldest below the committed step"),
        ([sealed(0, 4), sealed(1, 5), sealed(2, 6)], 5, 0, "4 may go: 5 is sealed by everybody"),
        ([sealed(0, 4), sealed(1, 5), sealed(2, 6)], 4, None, "4 may be the last common step: skip"),
        ([sealed(0, 4), sealed(1, 5)], 5, 0, "two slots"),
        ([sealed(0, 4, lease=99), sealed(1, 5), sealed(2, 6)], 6, 1, "a leased slot is left alone"),
        ([sealed(0, 4, lease=99), sealed(1, 5, lease=99), sealed(2, 6)], 6, None, "all old ones leased: skip"),
        ([sealed(0, 4, lease=5), sealed(1, 5), sealed(2, 6)], 6, 0, "an expired lease is none"),
        ([sealed(0, 4), sealed(1, 5), sealed(2, 6)], -1, None, "nothing known to be committed: skip"),
    ],
)
def test_which_slot_may_be_overwritten(slots, committed, expected, why):
    assert arena.choose_slot(slots, committed, now_ns=10) == expected, why


def test_a_slot_below_the_floor_is_free_unless_it_is_the_committed_one():
    slots = [sealed(0, 4), sealed(1, 6), sealed(2, 9)]
    assert arena.choose_slot(slots, 4, now_ns=10) is None
    assert arena.choose_slot(slots, 4, now_ns=10, floor_step=8) == 1
    assert arena.choose_slot(slots, 4, now_ns=10, floor_step=6) is None


def test_a_new_arena_takes_a_snapshot_of_every_step():
    buf = memoryview(bytearray(b"\xff" * HEADER.total_bytes))
    arena.format_arena(buf, HEADER, 1)
    assert arena.every(buf) == 0
    assert all(arena.is_due(arena.every(buf), step) for step in range(5))


def test_the_interval_is_one_word_of_its_own():
    buf = formatted(attempt=3)
    arena.set_floor(buf, 7)
    arena.set_every(buf, 8)
    assert int.from_bytes(buf[152:160], "little") == 8
    assert (arena.every(buf), arena.fence(buf), arena.floor(buf), arena.read_header(buf)) == (8, 3, 7, HEADER)
    with pytest.raises(ValueError, match="-1 steps"):
        arena.set_every(buf, -1)


def test_intervals_that_are_powers_of_two_share_steps():
    assert [s for s in range(16) if arena.is_due(4, s)] == [3, 7, 11, 15]
    assert {s for s in range(64) if arena.is_due(8, s)} < {s for s in range(64) if arena.is_due(4, s)}


def test_a_sealed_message_of_an_older_trainer_is_understood():
    line = b'{"kind":"Sealed","id":0,"body":{"rank":0,"attempt":1,"step":4,"path":"p","slot":1,"nbytes":9,"stall_seconds":0.5}}'
    message, _ = local.unpack(line)
    assert message == local.Sealed(0, 1, 4, "p", 1, 9, 0.5, fence_seconds=0.0, capture_seconds=0.0, copied=-1, mode="")
    assert local.unpack(local.pack(message))[0] == message


@pytest.mark.parametrize(
    ("setter", "getter"),
    [
        (arena.set_fence, arena.fence),
        (arena.set_committed, arena.committed),
        (arena.set_floor, arena.floor),
        (arena.set_every, arena.every),
        (lambda buf, word: arena.set_lease(buf, 1, word), lambda buf: arena.read_slot(buf, 1).lease_until),
    ],
)
def test_another_process_sees_a_word_as_it_was_or_as_it_is(
    setter: Callable[[memoryview, int], None], getter: Callable[[memoryview], int]
) -> None:
    shared = mmap.mmap(-1, HEADER.total_bytes)
    buf = memoryview(shared)
    arena.format_arena(buf, HEADER, 1)
    old, new = 0x0102030405060708, 0x1112131415161718
    setter(buf, old)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        while True:
            setter(buf, new)
            setter(buf, old)
    try:
        until, seen = time.monotonic() + 10, set()
        while time.monotonic() < until and seen != {old, new}:  # both are seen: the other one really writes meanwhile
            seen.update(getter(buf) for _ in range(50_000))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == {old, new}
