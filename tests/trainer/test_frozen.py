"""Frozen once: what did not change is not copied again, and is in every snapshot all the same."""

from __future__ import annotations

from pathlib import Path

import holdfast
import pytest
import torch
from torch import nn

from trainer.held import Background, background
from trainer.sealed import MEGABYTE, add_one, checkpointer, sealed, value_of

pytestmark = pytest.mark.torch
__all__ = ["background"]  # a fixture
FROZEN = 4 * MEGABYTE


@pytest.fixture(autouse=True, params=["lazy", "sync"])
def mode(local: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("HOLDFAST_CAPTURE", request.param)
    monkeypatch.delenv("HOLDFAST_VERIFY", raising=False)


class Tuned(nn.Module):
    """4 MiB frozen, 64 KiB trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
        nn.init.constant_(self.base.weight, 1.0)
        self.tip = nn.Linear(1024, 16, bias=False)


def tuned() -> tuple[Tuned, torch.optim.Optimizer]:
    model = Tuned()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9)
    return model, optimizer


def take(ckpt: holdfast.Checkpointer, model: Tuned, optimizer: torch.optim.Optimizer, steps: range) -> list[int]:
    """Train and snapshot; the bytes that each snapshot copied."""
    copied = []
    for step in steps:
        model.tip.weight.grad = torch.randn_like(model.tip.weight)
        optimizer.step()
        assert ckpt.snapshot(step)
        assert ckpt.wait()
        copied.append(ckpt.report().bytes_copied)
    return copied


def base_of(folder: Path) -> dict[int, list[float]]:
    return {step: value_of(held["model.base.weight"]) for step, held in sealed(folder).items()}


def test_what_is_frozen_is_copied_once_for_each_slot(local: Path) -> None:
    model, optimizer = tuned()
    trained = 2 * model.tip.weight.nbytes  # with its momentum
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        copied = take(ckpt, model, optimizer, range(10))
        assert all(n > FROZEN for n in copied[:3])
        assert all(trained <= n <= trained + 32_000 for n in copied[4:]), copied  # the generators' states go with them
        assert ckpt.report().state_bytes > FROZEN
    assert base_of(local) == {9: [1.0], 8: [1.0], 7: [1.0]}


def test_a_frozen_tensor_that_changes_is_copied_again(local: Path) -> None:
    model, optimizer = tuned()
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        take(ckpt, model, optimizer, range(5))
        with torch.no_grad():
            model.base.weight.add_(1)
        copied = take(ckpt, model, optimizer, range(5, 8))
        assert base_of(local) == {7: [2.0], 6: [2.0], 5: [2.0]}
        assert all(n > FROZEN for n in copied), "each slot needs the new values"
        assert all(n < FROZEN for n in take(ckpt, model, optimizer, range(8, 12)))
    assert base_of(local) == {11: [2.0], 10: [2.0], 9: [2.0]}


def test_a_frozen_tensor_with_other_memory_is_copied_again(local: Path) -> None:
    model, optimizer = tuned()
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        take(ckpt, model, optimizer, range(5))
        model.base.weight.data = torch.full_like(model.base.weight, 3.0)
        take(ckpt, model, optimizer, range(5, 6))
        model.base.weight = nn.Parameter(torch.full_like(model.base.weight, 4.0), requires_grad=False)
        take(ckpt, model, optimizer, range(6, 7))
    assert base_of(local) == {6: [4.0], 5: [3.0], 4: [1.0]}


@pytest.mark.parametrize("verify", [False, True])
def test_a_frozen_tensor_changed_through_data_is_seen_by_the_debug_mode_alone(
    local: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verify: bool
) -> None:
    """Documented: torch does not count such a change. The snapshot of a slot that still has the old bytes is refused."""
    monkeypatch.setenv("HOLDFAST_VERIFY", str(int(verify)))
    model, optimizer = tuned()
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        take(ckpt, model, optimizer, range(5))
        model.base.weight.data.fill_(9)
        if verify:
            assert not (ckpt.snapshot(5) and ckpt.wait())
            assert "model.base.weight" in capsys.readouterr().err
            take(ckpt, model, optimizer, range(6, 8))
            assert base_of(local)[7] == [9.0]
        else:
            take(ckpt, model, optimizer, range(5, 6))
            assert base_of(local)[5] == [1.0]


def test_what_is_unfrozen_is_fenced_like_the_rest(local: Path, background: Background) -> None:
    model, _ = tuned()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        take(ckpt, model, optimizer, range(5))
        model.base.requires_grad_(True)
        for step in range(5, 8):
            background.hold()
            assert ckpt.snapshot(step)
            add_one(model, optimizer)
            background.release()
            assert ckpt.wait()
    assert base_of(local) == {7: [3.0], 6: [2.0], 5: [1.0]}
