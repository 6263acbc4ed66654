"""Parity in memory that is full, damaged, cut short, or left by an earlier sidecar."""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast_core.arena import ArenaError
from holdfast_core.messages import Parity
from holdfast_sidecar.peers import PeerError, parity_file
from holdfast_sidecar.peers.parity_file import ParityFile
from holdfast_sidecar.slots import NoMemory

from .conftest import MakePods
from .images import flip
from .peer_pods import SIZE, PeerPod, encode, protected


def test_full_memory_is_an_error_that_says_what_to_set(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    pod = job.pods[0]
    pod.arenas.budget.config = dataclasses.replace(pod.config, memory_limit=pod.arenas.total_bytes + 1_000_000)
    with pytest.raises(NoMemory, match=r"parity of rank 0 .* takes 3 MiB, 0 MiB are left .*checkpoint\.memory\.size.*peers"):
        encode(job, 0, copy)
    assert pod.peers.parity.total_bytes == 0


def test_parity_counts_when_an_arena_wants_to_grow(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    encode(job, 0, copy)
    pod = job.pods[0]
    room = pod.arenas.total_bytes + pod.peers.parity.total_bytes
    pod.arenas.budget.config = dataclasses.replace(pod.config, memory_limit=room + 1_000_000)
    with pytest.raises(NoMemory, match="0 MiB are left of the configured memory limit"):
        pod.arenas.reserve(0, 2 * pod.arenas.slot_bytes)


def test_the_parity_before_stays_until_it_is_not_kept_any_more(make_pods: MakePods) -> None:
    job, first = protected(make_pods)
    store = job.pods[0].peers.parity
    encode(job, 0, first)
    second = job.seal(4, [SIZE] * 3)
    store.keep([first])
    encode(job, 0, second)
    assert {p.copy for p in store.whole()[0]} == {first, second}
    store.keep([first, second])
    third = job.seal(5, [SIZE] * 3)
    with pytest.raises(ArenaError, match="both parity buffers of rank 0"):
        encode(job, 0, third)
    taken = store.total_bytes
    store.keep([second])
    encode(job, 0, third)
    assert {p.copy for p in store.whole()[0]} == {second, third}
    assert store.total_bytes == taken


def test_who_looks_while_a_buffer_is_made_anew_sees_what_is_whole(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop tells the operator what there is, while threads begin and clear buffers."""
    job, copy = protected(make_pods)
    encode(job, 0, copy)
    store, kind = job.pods[0].peers.parity, Parity(copy, (0, 1, 2), 1)
    whole = type(store)._whole

    def cleared_meanwhile(*arguments: Any) -> list[ParityFile]:
        found = whole(*arguments)
        for file in found:
            file.clear()
        return found

    assert store.holds(0, kind)
    monkeypatch.setattr(type(store), "_whole", cleared_meanwhile)
    assert store.whole() == {}
    assert not store.holds(0, kind)


def test_a_failure_leaves_the_parity_before_as_it_was(make_pods: MakePods) -> None:
    job, first = protected(make_pods)
    job.protect(first)
    before = bytes(job.parity(0, first).row(0))
    second = job.seal(4, [SIZE] * 3)
    job.pods[1].close()
    with pytest.raises(PeerError):
        encode(job, 0, second)
    assert bytes(job.parity(0, first).row(0)) == before


def test_parity_outlives_its_sidecar(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    before = job.images(copy)
    job.protect(copy)
    whole = job.pods[1].peers.parity.whole()
    job.pods[1].close()
    job.pods[1].open()
    assert job.pods[1].peers.parity.whole() == whole
    job.lose(0)
    job.rebuild(copy, 0)
    assert job.images(copy) == before


def parity_path(pod: PeerPod) -> Path:
    (path,) = (Path(pod.config.shared_dir) / "parity").iterdir()
    return path


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def cut_very_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def spoil_record(path: Path) -> None:
    flip(path, 4096 + 30)


def spoil_sums(path: Path) -> None:
    record = int.from_bytes(path.read_bytes()[24:32], "little")
    flip(path, 4096 + record - 1)


def spoil_head(path: Path) -> None:
    flip(path, 17, 0x30)  # where the rows start: a page before they do


def unfinished(path: Path) -> None:
    flip(path, 512, 1)


def of_another_rank(path: Path) -> None:
    shutil.copy(path, path.with_name("rank-00001.0.parity"))
    path.unlink()


def of_another_job(path: Path) -> None:
    flip(path, 32)
    raw = path.read_bytes()[: parity_file._HEAD.size]
    with path.open("r+b") as file:
        file.write(raw[:-4] + zlib.crc32(raw[:-4]).to_bytes(4, "little"))


HARM = [cut_short, cut_very_short, spoil_record, spoil_sums, spoil_head, unfinished, of_another_rank, of_another_job]


@pytest.mark.parametrize("spoil", HARM)
def test_parity_that_cannot_be_trusted_is_deleted_at_start(make_pods: MakePods, spoil: Callable[[Path], None]) -> None:
    job, copy = protected(make_pods)
    encode(job, 0, copy)
    job.pods[0].close()
    spoil(parity_path(job.pods[0]))
    job.pods[0].open()
    assert job.pods[0].peers.parity.whole() == {}
    assert list((Path(job.pods[0].config.shared_dir) / "parity").iterdir()) == []
    assert encode(job, 0, copy) > 0


def test_a_buffer_that_is_cut_short_while_it_is_in_use_is_not_believed(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    encode(job, 0, copy)
    cut_short(parity_path(job.pods[0]))
    assert job.pods[0].peers.parity.whole() == {}
    assert encode(job, 0, copy) > 0
