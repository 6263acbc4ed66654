"""Tensors on a GPU: verified in the slot, then copied to the device; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.same import same
from trainer.test_checkpointer import load, save

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def make(seed: int, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        model(torch.randn(8, 64, device="cuda")).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("steps", [0, 2], ids=["fresh", "with state"])
def test_module_and_optimizer_on_a_gpu(local: Path, steps: int) -> None:
    (model, optimizer), (live, other) = make(1, 3), make(2, steps)
    addresses = {k: v.data_ptr() for k, v in live.state_dict().items()}
    save(model=model, optimizer=optimizer)
    assert load(model=live, optimizer=other) == 0
    assert {k: v.data_ptr() for k, v in live.state_dict().items()} == addresses
    assert same(dict(live.state_dict()), dict(model.state_dict()))
    assert same(other.state_dict(), optimizer.state_dict())
    states = [v for s in other.state.values() for v in s.values()]
    assert states
    assert all(v.is_cuda for v in states)


def test_values_on_a_gpu(local: Path) -> None:
    kept, state = torch.zeros(5, 3, device="cuda").t(), dict[str, Any]()
    save(kept=torch.randn(3, 5, device="cuda"), state={"new": torch.ones(3, device="cuda")})
    load(kept=kept, state=state)
    assert state["new"].is_cuda
    assert float(kept.abs().sum()) > 0


def test_state_that_moved_between_cpu_and_gpu(local: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    save(optimizer=optimizer)
    moved = torch.nn.Parameter(torch.ones(3, device="cuda"))
    other = torch.optim.AdamW([moved])
    load(optimizer=other)
    assert other.state[moved]["exp_avg"].is_cuda
    assert same(other.state[moved]["exp_avg"].cpu(), optimizer.state[parameter]["exp_avg"])
