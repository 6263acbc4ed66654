"""The interval of snapshots in the training loop: which steps are captured, and that the last one always is."""

from __future__ import annotations

from pathlib import Path

import holdfast
import pytest
import torch
from holdfast._state.mapping import open_arena
from holdfast_core import arena

pytestmark = pytest.mark.torch


def train(total: int) -> list[int]:
    """The steps for which `snapshot` said that it takes one."""
    module = torch.nn.Linear(2, 2)
    ckpt = holdfast.Checkpointer(model=module)
    taken = []
    for step in ckpt.steps(total):
        if ckpt.snapshot(step):
            taken.append(step)
            assert ckpt.wait()
    return taken


@pytest.mark.parametrize(("every", "expected"), [(1, list(range(12))), (4, [3, 7, 11]), (5, [4, 9, 11]), (100, [11])])
def test_what_the_user_asks_for_is_kept(local: Path, monkeypatch: pytest.MonkeyPatch, every: int, expected: list[int]) -> None:
    monkeypatch.setenv("HOLDFAST_EVERY", str(every))
    assert train(12) == expected
    assert train(12) == []  # nothing is left to do, and nothing was lost


def test_an_interval_that_comes_through_the_arena_holds_from_then_on(local: Path) -> None:
    """As a sidecar orders it in mid run; the first snapshot is taken whatever the interval, for it makes the arena."""
    module = torch.nn.Linear(2, 2)
    ckpt = holdfast.Checkpointer(model=module)
    taken = []
    for step in ckpt.steps(10):
        if ckpt.snapshot(step):
            taken.append(step)
            assert ckpt.wait()
        if step == 1:
            (path,) = local.glob("*.arena")
            arena.set_every(open_arena(path).buf, 3)
    assert taken == [0, 1, 2, 5, 8, 9]


def test_a_run_that_ended_between_two_intervals_has_its_last_step(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_EVERY", "4")
    train(6)
    ckpt = holdfast.Checkpointer(model=torch.nn.Linear(2, 2))
    assert ckpt.restore() == 5
    ckpt.close()
