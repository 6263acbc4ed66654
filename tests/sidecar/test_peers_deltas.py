"""Parity brought up to date by what changed: the same bytes in the end, and few of them over the network."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from holdfast_core.fastcopy import crc32
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers import Fault, PeerError
from holdfast_sidecar.peers.deltas import Changes
from holdfast_sidecar.peers.encode import Encoder
from holdfast_sidecar.peers.parity_file import ParityFile
from holdfast_sidecar.peers.throttle import Throttle

from .conftest import MakePods
from .peer_pods import PeerJob, encode

MIB = 1 << 20


def changed(make_pods: MakePods, pods: int, m: int, sizes: list[int], frozen: int) -> tuple[PeerJob, Copy, Copy]:
    """A job with parity of step 3, and step 4 sealed."""
    job = make_pods(pods, encrypted=False)
    first = job.seal(3, sizes, frozen)
    job.protect(first, m=m)
    for pod in job.pods:
        pod.peers.parity.keep([first])
    return job, first, job.seal(4, sizes, frozen)


@pytest.mark.parametrize(("pods", "m", "lost"), [(2, 1, (0,)), (4, 1, (1,)), (5, 2, (0, 3))])
def test_a_state_that_is_mostly_frozen_sends_what_changed_and_is_rebuilt_whole(
    make_pods: MakePods, pods: int, m: int, lost: tuple[int, ...]
) -> None:
    sizes = [20 * MIB, 18 * MIB + 1, 19 * MIB, 17 * MIB, 20 * MIB][:pods]
    job, first, second = changed(make_pods, pods, m, sizes, 16 * MIB)
    before = job.images(second)
    received = job.protect(second, m=m, base=first)
    assert all(0 < n <= m * 8 * MIB for n in received), "a piece at either border may come along"
    assert len(job.pods[0].peers.parity.whole()[0]) == 2
    job.lose(*lost)
    job.rebuild(second, *lost)
    assert job.images(second) == before


def test_parity_from_changes_is_that_from_whole_snapshots(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 4, 1, [9 * MIB, 8 * MIB, 9 * MIB, 8 * MIB], 6 * MIB)
    job.protect(second, base=first)
    found = [bytes(job.parity(rank, second).row(0)) for rank in range(4)]
    for pod in job.pods:
        pod.peers.parity.drop(pod.config.index, second)
    job.protect(second)
    assert [bytes(job.parity(rank, second).row(0)) for rank in range(4)] == found


def test_differences_come_in_small_portions_on_a_slow_line(make_pods: MakePods) -> None:
    """Nobody is silent for as long as a piece takes."""
    job, first, second = changed(make_pods, 2, 1, [3 * MIB] * 2, 3 * MIB // 2)
    server = job.pods[1].peers._server
    assert server is not None
    server._throttle = Throttle(400_000)
    limited = dataclasses.replace(job.pods[0].config.peers, bandwidth=400_000)
    job.pods[0].peers._config = dataclasses.replace(job.pods[0].config, peers=limited)
    job.pods[0].peers.stall = 1.5
    assert encode(job, 0, second, base=first) < 3 * MIB


def test_where_little_is_as_it_was_all_is_sent(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 3, 1, [4 * MIB] * 3, MIB)
    assert all(n >= 4 * MIB for n in job.protect(second, base=first))


def test_a_base_that_is_gone_is_done_without(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    job.pods[1].view(1, first).clear()
    received = job.protect(second, base=first)
    assert received[0] >= 8 * MIB
    assert received[2] >= 8 * MIB
    assert 0 < received[1] < 4 * MIB


def test_a_base_that_is_corrupt_is_done_without(make_pods: MakePods) -> None:
    """What was frozen is compared byte for byte; where it differs, both copies are checked."""
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    before = job.images(second)
    for at in range(100, 7 * MIB, MIB):
        job.pods[1].view(1, first).data()[at] ^= 1
    job.protect(second, base=first)
    assert {(rank, copy) for rank, copy, _ in job.pods[1].corrupt} == {(1, first)}
    assert job.pods[1].arenas.sealed() == {1: (second,)}
    job.lose(2)
    job.rebuild(second, 2)
    assert job.images(second) == before


def test_of_a_base_with_a_corrupt_manifest_only_the_base_is_forgotten(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    view = job.pods[1].view(1, first)
    view.file.buf[view.file.header.region(view.slot.index) + view.slot.data_bytes + 40] ^= 1
    job.protect(second, base=first)
    assert {(rank, copy) for rank, copy, _ in job.pods[1].corrupt} <= {(1, first)}
    assert second in job.pods[1].arenas.sealed()[1]


def test_a_change_from_corrupt_memory_is_never_made_parity(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    for at in range(100, 8 * MIB, MIB // 2):
        job.pods[1].view(1, second).data()[at] ^= 1
    with pytest.raises(PeerError) as error:
        asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first))
    assert (error.value.kind, error.value.index) == (Fault.LACKS, 1), "asked for all of it, the pod had forgotten it already"
    assert {copy for _, copy, _ in job.pods[1].corrupt} == {second}
    assert [p.copy for p in job.pods[0].peers.parity.whole()[0]] == [first]


def test_parity_that_rotted_is_no_base(make_pods: MakePods) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    before = job.images(second)
    job.parity(0, first).row(0)[MIB + 5] ^= 1
    assert asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first)) >= 8 * MIB
    job.protect(second, base=first)
    job.lose(1)
    job.rebuild(second, 1)
    assert job.images(second) == before


def test_a_change_that_was_spoilt_on_its_way_is_found_on_arrival(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    monkeypatch.setattr("holdfast_sidecar.peers.server.crc32", lambda view: crc32(view) ^ 1)
    with pytest.raises(PeerError) as error:
        asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first))
    assert error.value.kind is Fault.LYING
    assert [p.copy for p in job.pods[0].peers.parity.whole()[0]] == [first]


def test_a_base_that_is_dropped_while_changes_are_added_is_done_without(
    make_pods: MakePods, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    before, update = job.images(second), Encoder._update_row

    def drop(encoder: Encoder, base: ParityFile, *arguments: Any) -> None:
        update(encoder, base, *arguments)
        base.clear()

    monkeypatch.setattr(Encoder, "_update_row", drop)
    assert asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first)) >= 8 * MIB
    monkeypatch.undo()
    job.protect(second, base=first)
    job.lose(1)
    job.rebuild(second, 1)
    assert job.images(second) == before


def between_pieces(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Something happens at a sender after each piece that it compared."""
    pieces = Changes.pieces

    def disturbed(*arguments: Any) -> Iterator[Any]:
        for piece in pieces(*arguments):
            yield piece
            act()

    monkeypatch.setattr(Changes, "pieces", disturbed)


def test_changes_end_when_the_next_attempt_begins(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    between_pieces(monkeypatch, lambda: job.pods[1].fence(2))
    with pytest.raises(PeerError) as error:
        asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first))
    assert error.value.kind is Fault.FENCED


def test_a_base_that_is_reused_while_changes_are_sent_is_done_without(
    make_pods: MakePods, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, first, second = changed(make_pods, 3, 1, [8 * MIB] * 3, 7 * MIB)
    base = job.pods[1].view(1, first)
    between_pieces(monkeypatch, base.clear)
    assert asyncio.run(job.pods[0].peers.encode(0, second, (0, 1, 2), 1, job.places, first)) >= 8 * MIB
