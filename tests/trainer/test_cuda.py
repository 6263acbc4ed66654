"""Capture and restore of device tensors. Needs a GPU; without one this says so and tests nothing."""

from __future__ import annotations

from collections.abc import Iterator

import holdfast
import pytest
import torch

pytestmark = [pytest.mark.torch, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("HOLDFAST_DIR", str(tmp_path))
    yield
    torch.cuda.synchronize()


def job(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.BatchNorm1d(2048), torch.nn.Linear(2048, 2048)).cuda()
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss = model(torch.randn(64, 2048, device="cuda")).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [t.detach().cpu().clone() for t in model.state_dict().values()]


def test_a_step_right_after_the_snapshot_does_not_reach_it():
    model, optimizer = job(1)
    with_ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    with_ckpt.restore()
    train(model, optimizer)
    for step in range(4):
        expected = weights(model)
        assert with_ckpt.snapshot(step)
        train(model, optimizer)  # is given to the device before the copies have run
        assert with_ckpt.wait()
    assert with_ckpt.report().mode == "lazy"
    with_ckpt.close()
    model, optimizer = job(2)
    again = holdfast.Checkpointer(model=model, optimizer=optimizer)
    assert again.restore() == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))
    again.close()


def test_a_run_that_was_interrupted_ends_with_the_same_weights():
    def run(stops: set[int]) -> list[torch.Tensor]:
        model, optimizer = job(3)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
        for step in ckpt.steps(8):
            ckpt.snapshot(step, loss=train(model, optimizer))
            if step in stops:
                ckpt.close()
                return run(stops - {step})
        return weights(model)

    interrupted = run({2, 5})
    model, optimizer = job(3)
    for _ in range(8):
        train(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), interrupted, strict=True))


def test_a_tensor_that_is_changed_by_hand_without_a_fence_drops_the_snapshot(capfd):
    model, optimizer = job(4)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    train(model, optimizer)
    ckpt.snapshot(0)
    with torch.no_grad():
        model[0].weight.add_(1)
    train(model, optimizer)
    assert not ckpt.wait()
    ckpt.close()
    assert "model.0.weight was changed while it was being copied" in capfd.readouterr().err
