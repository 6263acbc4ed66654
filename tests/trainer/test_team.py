"""Torch's own threads, borrowed for a copy: as many as torch has, the same bytes, and torch computes on as before."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from holdfast._capture import team
from holdfast_core import fastcopy

from trainer.sealed import add_one, checkpointer, constant, sealed, value_of

pytestmark = pytest.mark.torch


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [2, 3])
def test_every_thread_of_the_team_takes_part_and_all_is_copied(count: int) -> None:
    others = _threads()
    torch.set_num_threads(count)
    found = team.fork()
    if found is None:
        pytest.skip("this torch does not compute with GNU OpenMP")
    fork, number = found
    assert number == count
    source, to = torch.arange(8 << 20, dtype=torch.uint8), torch.zeros(8 << 20, dtype=torch.uint8)
    piece = 1 << 16
    work = [(at, source.data_ptr() + at, piece) for at in range(0, source.nbytes, piece)]
    batch = fastcopy.Batch(work)
    batch.run_in(fork, to.data_ptr(), array("I", [0]))
    assert batch.finished()
    assert torch.equal(source, to)
    before = _threads()
    ours = before - others
    (torch.rand(1 << 22) + 1).sum()
    batch.reset()
    batch.run_in(fork, to.data_ptr(), array("I", [0]))
    after = _threads()
    assert ours <= after <= before  # nobody had to be ended or started; what other tests have left may end now


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("threads")
def test_with_a_single_thread_there_is_no_team() -> None:
    torch.set_num_threads(1)
    assert team.fork() is None


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["main thread", "another thread"])
def test_snapshots_that_the_team_copies_are_whole(local: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    torch.set_num_threads(2)
    monkeypatch.setenv("HOLDFAST_CAPTURE", "sync:2")
    module, optimizer = constant(1.0)

    def train() -> None:
        with checkpointer(model=module, optimizer=optimizer) as ckpt:
            for step in range(4):
                add_one(module, optimizer)
                assert ckpt.snapshot(step)

    if elsewhere:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(60)
    else:
        train()
    kept = sealed(local)
    assert {step: value_of(next(iter(entries.values()))) for step, entries in kept.items()} == {
        step: [step + 2.0] for step in (1, 2, 3)
    }
