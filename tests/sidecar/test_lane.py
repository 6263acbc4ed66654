"""Blocking calls with a limit, and the small parts."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from holdfast_sidecar import injection
from holdfast_sidecar.stores.base import StoreError, pieces
from holdfast_sidecar.stores.lane import Abandoned, Lane, Pulse
from holdfast_sidecar.trainers import skip_reason

from .harness import eventually


def test_a_call_returns_what_the_work_returns_or_raises() -> None:
    async def main() -> None:
        lane = Lane("pvc")
        assert await lane.call(lambda _: 5) == 5
        with pytest.raises(KeyError):
            await lane.call(lambda _: {}["x"])

    asyncio.run(main())


def test_a_hanging_call_is_given_up_and_others_fail_at_once_until_it_returns() -> None:
    async def main() -> None:
        lane, release = Lane("pvc", stall=0.3), threading.Event()
        with pytest.raises(StoreError, match="did not answer"):
            await lane.call(lambda _: release.wait(30))
        with pytest.raises(StoreError, match="has not answered for"):
            await asyncio.wait_for(lane.call(lambda _: 5), 0.2)
        release.set()
        await asyncio.to_thread(eventually, lambda: not lane._hanging)
        assert await lane.call(lambda _: 5) == 5

    asyncio.run(main())


def test_progress_keeps_a_slow_call_alive_and_a_cancelled_one_stops_at_its_next_beat() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(pulse: Pulse) -> str:
        began.set()
        try:
            for _ in range(25):  # longer than the lane lets one be silent
                time.sleep(0.1)
                pulse.beat()
        except Abandoned:
            ended.set()
            raise
        return "done"

    async def main() -> None:
        lane = Lane("pvc", stall=2.0)
        assert await lane.call(work) == "done"
        with pytest.raises(StoreError):
            await lane.call(work, limit=0.1)
        assert await asyncio.to_thread(ended.wait, 10)
        await asyncio.to_thread(eventually, lambda: not lane._hanging)  # else the next one is refused
        began.clear()
        ended.clear()
        task = asyncio.create_task(lane.call(work))
        assert await asyncio.to_thread(began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(main())


@pytest.mark.parametrize("sizes", [[], [0], [5], [4, 4], [3, 3, 3], [20], [1] * 9, [8, 0, 1]])
def test_pieces_are_the_same_bytes(sizes: list[int]) -> None:
    chunks, at = [], 0
    for size in sizes:
        chunks.append(bytes(range(at, at + size)))
        at += size
    cut = list(pieces(chunks, 4))
    assert b"".join(cut) == b"".join(chunks)
    assert all(len(p) == 4 for p in cut[:-1])
    assert all(cut)


def test_injection_copies_what_differs_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    injection.inject(tmp_path, ("holdfast_core",))
    module = tmp_path / "holdfast_core" / "arena.py"
    before = module.stat().st_ino
    injection.inject(tmp_path, ("holdfast_core",))
    assert module.stat().st_ino == before, "running processes keep their files"
    (tmp_path / "holdfast_core" / ".digest").write_text("older")
    injection.inject(tmp_path, ("holdfast_core",))
    assert module.stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holdfast_core"]
    with pytest.raises(injection.InjectionError, match="'nowhere' is not installed"):
        injection.inject(tmp_path, ("nowhere",))


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("no free slot: the kept steps are not yet committed by all ranks, or being uploaded", "no_slot"),
        ("fenced: attempt 4 writes now", "fenced"),
        ("a snapshot of rank 0 takes 5 bytes; ...: set checkpoint.memory.size to 1Mi", "too_small"),
        ("no answer to Reserve from the sidecar at /x within 10 s; is the sidecar container running?", "agent"),
        ("the moon is in the way", "other"),
        ("error", "error"),
    ],
)
def test_reasons_of_skipped_snapshots_are_a_few_words(sentence: str, reason: str) -> None:
    assert skip_reason(sentence) == reason
