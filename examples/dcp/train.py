"""A training loop written for torch.distributed.checkpoint, on Holdfast's memory: a writer and a reader are exchanged.

    python train.py                                  one process, snapshots in .holdfast/train
    holdfast run -n 2 train.py                       two processes, kept alive by Holdfast on this machine
    kubectl apply -f trainingjob.yaml                on a cluster

The last line is a hash of the weights: with the same arguments and number of ranks it is the same, bit for bit, however often
the run was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from holdfast.integrations.dcp import HoldfastReader, HoldfastWriter, last_step  # (1)
from torch import nn


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def set_up(world: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same weights on every rank. DCP loads into what is there, so the optimizer's moments have to be there."""
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    model: nn.Module = nn.Sequential(nn.Linear(8, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 1))
    if world > 1:  # gradients are found anew in each step, or they were added in another order after a restart
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return model, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model, optimizer = set_up(world)
    torch.manual_seed(2 + rank)

    def state() -> dict[str, Any]:
        own = {f"rng.{rank}": torch.get_rng_state()}  # each rank has its own: under a name of its own
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **own}

    first = last_step() + 1
    if first:
        loaded = state()
        dcp.load(loaded, storage_reader=HoldfastReader())  # (2)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        torch.set_rng_state(loaded[f"rng.{rank}"])
    writer = HoldfastWriter()
    for step in range(first, arguments.steps):
        numbers = torch.rand(16, 8)
        loss = nn.functional.mse_loss(model(numbers), numbers.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dcp.save(state(), storage_writer=writer, checkpoint_id=f"step-{step}")  # (3)
        if rank == 0 and step % 10 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    if rank == 0:
        print(f"final-weights sha256={weights_hash(model)}", flush=True)


if __name__ == "__main__":
    main()
