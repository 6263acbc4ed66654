"""A DDP job whose ranks keep a share each: together they hold everything once, and resume bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast._state.replicas import Shares, by_number, deal
from holdfast_core.manifest import CorruptShard, Entry
from ports import free_port

from trainer.fake_sidecar import python_env

pytestmark = pytest.mark.torch

JOB = """
import hashlib, json, os, sys
import torch, holdfast
import torch.distributed as dist
rank, world, stop, lie = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[1]), len(sys.argv) > 2
dist.init_process_group("gloo")
torch.manual_seed(1)
layers = (torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256), torch.nn.Linear(256, 256), torch.nn.Dropout(0.2))
model = torch.nn.Sequential(*layers)
ddp = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
torch.manual_seed(10 + rank)
optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
ckpt = holdfast.Checkpointer(model=ddp, optimizer=optimizer)
if lie and rank == 0:  # what rank 0 sends is not what it captured
    real = dist.broadcast
    def broadcast(tensor, *rest, **more):
        if tensor.dtype == torch.uint8:
            tensor[1000].add_(1)
        return real(tensor, *rest, **more)
    dist.broadcast = broadcast
try:
    first = ckpt.restore() + 1
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
    os._exit(3)
for step in range(first, stop):
    loss = ddp(torch.randn(16, 256)).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert ckpt.snapshot(step, loss=loss)
    assert ckpt.wait()
digest = hashlib.sha256(b"".join(bytes(t.detach().contiguous().view(-1).view(torch.uint8).numpy()) for t in (
    *model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values()))))
print(json.dumps({"first": first, "copied": ckpt.report().bytes_copied, "hash": digest.hexdigest()}), flush=True)
ckpt.close()
dist.destroy_process_group()
"""


def run(folder: Path, world: int, *arguments: str, replicas: str = "shares") -> list[dict[str, object]]:
    """What each rank said at its end."""
    script = folder / "job.py"
    script.write_text(JOB)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = {"WORLD_SIZE": str(world), "HOLDFAST_REPLICAS": replicas, **rendezvous}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=python_env(RANK=str(rank), HOLDFAST_DIR=str(folder / "home"), OMP_NUM_THREADS="1", **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = []
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert out.strip(), err
        said.append(json.loads(out.splitlines()[-1]))
    return said


@pytest.mark.slow
def test_shares_hold_everything_once_and_resume_bit_for_bit(tmp_path):
    world = 3
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run(tmp_path / "a", world, "8", replicas="full")
    run(tmp_path / "b", world, "5")
    parts = run(tmp_path / "b", world, "8")
    assert [p["first"] for p in parts] == [5] * world
    assert [p["hash"] for p in parts] == [p["hash"] for p in whole]
    full = int(str(whole[0]["copied"]))
    assert sum(int(str(p["copied"])) for p in parts) < 1.2 * full
    assert max(int(str(p["copied"])) for p in parts) < full / world * 1.6


@pytest.mark.slow
def test_shares_that_do_not_make_the_whole_are_refused(tmp_path):
    run(tmp_path, 2, "3")
    said = run(tmp_path, 2, "6", replicas="full")
    assert all("HOLDFAST_REPLICAS=shares" in str(s["error"]) for s in said), "a share is not taken for a whole snapshot"
    said = run(tmp_path, 2, "6", "lie")
    assert "CorruptShard" in str(said[1]["error"]), "what arrives wrong is not believed"
    assert "mismatch" in str(said[1]["error"])


def test_the_largest_are_dealt_first_and_the_small_ones_stay_with_everybody():
    assert deal([1 << 20, 3 << 20, 100, 2 << 20, 1 << 20], 2) == [1, 0, -1, 1, 0]
    sizes = [(1 << 20) + 64 * n for n in range(100)]
    loads = [sum(s for s, h in zip(sizes, deal(sizes, 7), strict=True) if h == rank) for rank in range(7)]
    assert max(loads) - min(loads) <= 2 * max(sizes)
    assert deal(sizes, 7) == deal(list(sizes), 7)


def test_leaves_keep_their_numbers():
    shares = Shares((0,), {1: 1, 3: 1}, 100)
    entries = [Entry(key, "uint8", (1,), 0, 1) for key in ("zero", "two", "late")]
    assert {n: e.key for n, e in by_number(entries, shares).items()} == {0: "zero", 2: "two", 4: "late"}
    assert Shares.from_json(json.loads(json.dumps(shares.to_json()))) == shares
    with pytest.raises(CorruptShard, match="shares"):
        Shares.from_json({"mine": 3})
