"""DTensors: each rank stores and restores its shard, in place; another layout is refused before anything is touched."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from holdfast._state import codec, shards
from holdfast.errors import StateMismatch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from trainer.fake_sidecar import wait_until
from trainer.same import same
from trainer.test_checkpointer import load, save
from trainer.test_run import Run, log, run, script, weights  # noqa: F401 - a fixture

pytestmark = pytest.mark.torch

TRAIN = """
import hashlib, os, sys, time
import torch, torch.distributed as dist, holdfast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
# 7 rows over 2 ranks: uneven; 1 row: nothing on the second rank
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Dropout(0.1), torch.nn.Linear(7, 1))
mesh = init_device_mesh("cpu", (world,))
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
torch.manual_seed(100 + rank)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
before = {k: v.to_local().data_ptr() for k, v in model.state_dict().items()}
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
ckpt.restore()
assert before == {k: v.to_local().data_ptr() for k, v in model.state_dict().items()}, "restored in place"
for step in ckpt.steps(int(sys.argv[1])):
    loss = model(torch.randn(4, 5)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ckpt.snapshot(step, loss=loss)
    print("at", step, "pid", os.getpid(), flush=True)
    while os.path.exists("hold") and step >= 10: time.sleep(0.01)
parts = [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]
local = [getattr(t.detach(), "to_local", t.detach)() for t in parts]
print("shapes", [list(t.shape) for t in local][:6], flush=True)
print("weights", hashlib.sha256(b"".join(t.numpy().tobytes() for t in local)).hexdigest(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_killed_rank_of_fsdp_resumes_bit_for_bit(tmp_path: Path, run: Run) -> None:  # noqa: F811
    name = script(tmp_path, TRAIN)
    assert run("-n", "2", name, "20").wait(100) == 0, log(tmp_path)
    expected = weights(tmp_path)
    assert len(expected) == 2
    assert "[0, 7]" in log(tmp_path), "one shard is empty"
    (tmp_path / "hold").touch()
    process = run("-n", "2", name, "20")
    wait_until(lambda: all(f"[rank {r}] at 10" in log(tmp_path) for r in range(2)), 100)
    victim = next(int(line.split()[5]) for line in log(tmp_path).splitlines() if line.startswith("[rank 1] at 10"))
    os.kill(victim, signal.SIGKILL)
    (tmp_path / "hold").unlink()
    assert process.wait(100) == 0, log(tmp_path)
    assert "resumed from memory at step" in log(tmp_path)
    assert weights(tmp_path) == expected


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def sharded(mesh: DeviceMesh, value: float, *, size: int = 6, dim: int = 0) -> DTensor:
    return DTensor.from_local(torch.full((size, 2), value), mesh, [Shard(dim)])


def test_a_leaf_says_where_it_lies(mesh: DeviceMesh) -> None:
    encoder = codec.Encoder()
    tree = json.loads(json.dumps(encoder.encode({"w": sharded(mesh, 1.0), "plain": torch.ones(2)}, "m")))
    (spec, plain) = encoder.specs
    assert (spec.global_shape, spec.global_offset, spec.shape, spec.nbytes) == ((6, 2), (0, 0), (6, 2), 48)
    assert (plain.global_shape, plain.global_offset) == (None, None)
    layout = shards.Layout.from_json(tree["w"][codec.LAYOUT])
    assert layout == shards.Layout((6, 2), (2, 1), (1,), (0,), ("S(0)",))
    assert type(encoder.leaves[0]) is torch.Tensor


def test_live_shards_are_written_in_place(local: Path, mesh: DeviceMesh) -> None:
    saved, live = sharded(mesh, 1.5), sharded(mesh, 0.0)
    address = live.to_local().data_ptr()
    save(state={"w": saved})
    state = {"w": live}
    assert load(state=state) == 0
    assert state["w"] is live
    assert live.to_local().data_ptr() == address
    assert same(live.to_local(), saved.to_local())


def test_state_of_a_fresh_optimizer_becomes_sharded_like_its_parameters(local: Path, mesh: DeviceMesh) -> None:
    def make(value: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(sharded(mesh, value))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    (p, optimizer), (q, other) = make(1.0), make(1.0)
    p.grad = sharded(mesh, 0.5)
    optimizer.step()
    save(optimizer=optimizer)
    load(optimizer=other)
    moments, restored = optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"]
    assert isinstance(restored, DTensor)
    assert (restored.placements, restored.device_mesh, restored.shape) == (moments.placements, mesh, moments.shape)
    assert same(restored.to_local(), moments.to_local())


@pytest.mark.parametrize("other", ["placement", "shape", "plain"])
def test_another_layout_is_refused_and_nothing_is_touched(local: Path, mesh: DeviceMesh, other: str) -> None:
    first = torch.zeros(3)
    save(first=torch.ones(3), state={"w": sharded(mesh, 1.0)})
    live = {
        "placement": DTensor.from_local(torch.zeros(6, 2), mesh, [Replicate()]),
        "shape": sharded(mesh, 0.0, size=8),
        "plain": torch.zeros(6, 2),
    }[other]
    with pytest.raises(StateMismatch, match="resharding isn't there yet") as caught:
        load(first=first, state={"w": live})
    assert "'state'" in caught.value.__notes__[0]
    assert not first.any()


def test_a_shard_without_a_live_counterpart_says_so(local: Path, mesh: DeviceMesh) -> None:
    save(state={"w": sharded(mesh, 1.0)})
    with pytest.raises(StateMismatch, match="no live DTensor"):
        load(state={})
