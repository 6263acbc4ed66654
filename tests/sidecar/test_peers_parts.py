"""The parts of the peers that stand alone: the limit on what is sent, checksums that travel ahead, who does not answer."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from holdfast_sidecar.peers import PeerPlace
from holdfast_sidecar.peers.client import STALL
from holdfast_sidecar.peers.probes import Probes
from holdfast_sidecar.peers.sums import RECORD, Check, Mismatch, table
from holdfast_sidecar.peers.throttle import Throttle
from hypothesis import given
from hypothesis import strategies as st

from .harness import free_port

# --- the limit


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    throttle = Throttle(0, clock, clock.sleep)
    throttle.take(1 << 40)
    assert clock.slept == []
    assert throttle.step(4 << 20, 500) == 4 << 20


def test_many_bytes_take_their_time() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock, clock.sleep)
    for _ in range(50):
        throttle.take(100)
    assert clock.now == pytest.approx(4.9)  # the first may go at once


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock, clock.sleep)
    clock.now = 1000.0
    for _ in range(11):
        throttle.take(100)
    assert clock.now == pytest.approx(1001.0)


def test_connections_take_turns() -> None:
    """Each is promised its time when it asks: nobody is overtaken."""
    promised = []
    throttle = Throttle(1000, lambda: 0.0, promised.append)
    for _ in range(4):
        throttle.take(500)
    assert promised == [0.5, 1.0, 1.5]


def test_a_slow_line_is_fed_in_small_portions() -> None:
    assert Throttle(1 << 20).step(4 << 20, 1) == 1 << 17
    assert Throttle(2 << 30).step(4 << 20, 1) == 4 << 20


@pytest.mark.parametrize("rate", [1 << 16, 1 << 20, 16 << 20, 64 << 20, 2 << 30])
@pytest.mark.parametrize("connections", [1, 24, 120, 448, 496])
def test_however_many_share_a_line_nobody_is_silent_for_as_long_as_a_client_waits(rate: int, connections: int) -> None:
    promised: list[float] = []
    throttle = Throttle(rate, lambda: 0.0, promised.append)
    step = throttle.step(4 << 20, connections)
    for _ in range(connections + 1):
        throttle.take(step)
    assert promised[-1] < 0.8 * STALL
    assert promised[-1] < 1.1 or step == 1 << 10


# --- checksums


def covered(data: bytes, cuts: list[int]) -> np.ndarray:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    tiles = [(a, b - a, zlib.crc32(data[a:b])) for a, b in itertools.pairwise(borders)]
    return np.array(tiles, RECORD)


def reading(data: bytes) -> Callable[[int, int], memoryview]:
    return lambda start, end: memoryview(data)[start:end]


PARTS = st.tuples(
    st.binary(min_size=1, max_size=400), st.lists(st.integers(0, 400), max_size=8), st.randoms(use_true_random=False)
)


def part_of(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, rng.randrange(start + 1, len(data) + 1)


@given(PARTS)
def test_any_part_of_any_size_of_pieces_is_proven_by_its_table(parts: tuple[bytes, list[int], random.Random]) -> None:
    data, cuts, rng = parts
    start, end = part_of(data, rng)
    check = Check(table(covered(data, cuts), reading(data), start, end), end - start)
    while start < end:
        until = rng.randrange(start + 1, end + 1)
        assert check.feed(memoryview(data)[start:until]) == zlib.crc32(data[start:until])
        start = until


@given(PARTS)
def test_any_flipped_bit_of_a_part_is_found_where_it_is(parts: tuple[bytes, list[int], random.Random]) -> None:
    data, cuts, rng = parts
    start, end = part_of(data, rng)
    check = Check(table(covered(data, cuts), reading(data), start, end), end - start)
    wrong, at = bytearray(data[start:end]), rng.randrange(end - start)
    wrong[at] ^= 1 << rng.randrange(8)
    with pytest.raises(Mismatch) as error:
        check.feed(memoryview(wrong))
    assert error.value.start <= at < error.value.end


@pytest.mark.parametrize("spoil", [lambda raw: b"", lambda raw: raw[:8], lambda raw: raw[:-3], lambda raw: raw[:-16],
                                   lambda raw: raw[:8] + raw[24:]])  # fmt: skip
def test_a_table_that_does_not_cover_its_part_is_refused(spoil: object) -> None:
    data = bytes(range(100))
    raw = table(covered(data, [30, 60]), reading(data), 10, 90)
    with pytest.raises(ValueError, match="table"):
        Check(spoil(raw), 80)  # type: ignore[operator]


# --- who does not answer


def place(index: int, port: int) -> PeerPlace:
    return PeerPlace(index, f"gpt-{index}", "127.0.0.1", port, index, 1)


def silenced() -> list[socket.socket]:
    """A port of a kernel that answers no further connection: its queue is full and nobody takes from it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = []
    for _ in range(8):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        filling.append(sock)
    return [listener, *filling]


def test_a_pod_that_answers_or_refuses_is_there_and_one_that_does_neither_is_silent() -> None:
    dead = silenced()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as alive:
        places = [place(1, alive.getsockname()[1]), place(2, free_port()), place(3, dead[0].getsockname()[1])]
        seen = asyncio.run(silent_after_a_while(places))
    for sock in dead:
        sock.close()
    assert set(seen) == {3}
    assert seen[3] > 1.0


async def silent_after_a_while(places: list[PeerPlace]) -> dict[int, float]:
    probes = Probes()
    probes.watch(places)
    assert probes.silent() == {}
    async with asyncio.timeout(20):
        while not (seen := probes.silent()):  # noqa: ASYNC110 - time has to pass
            await asyncio.sleep(0.05)
    probes.close()
    return seen


def test_a_watcher_that_is_held_up_itself_takes_nobody_for_silent() -> None:
    """All that time nobody was asked, and what was asked before was answered in time."""

    async def hold_up() -> dict[int, float]:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as alive:
            probes = Probes()
            probes.watch([place(1, alive.getsockname()[1]), place(2, free_port())])
            seen: dict[int, float] = {}
            for _ in range(4):
                await asyncio.sleep(0)
                time.sleep(0.7)  # noqa: ASYNC251 - that is the point
                seen |= probes.silent()
            probes.close()
            return seen

    assert asyncio.run(hold_up()) == {}


def test_who_is_not_watched_any_more_is_not_told() -> None:
    async def watch_and_forget() -> dict[int, float]:
        dead = silenced()
        probes = Probes()
        probes.watch([place(3, dead[0].getsockname()[1])])
        async with asyncio.timeout(20):
            while not probes.silent():  # noqa: ASYNC110 - time has to pass
                await asyncio.sleep(0.05)
        for sock in dead:
            sock.close()
        probes.watch([place(3, free_port())])  # the pod that took its place
        found = probes.silent()
        probes.close()
        return found

    assert asyncio.run(watch_and_forget()) == {}
