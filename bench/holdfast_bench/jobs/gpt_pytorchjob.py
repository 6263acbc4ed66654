"""The same training as a user of PyTorchJob would write it: `gpt_pytorchjob.py FOLDER ...` in a pod of three.

The model, data and loop are those of examples/gpt/train.py, which lies beside it in the image; rank 0 saves everything with
torch.save to a shared folder every ten steps. Holdfast is not in the pod: an empty module stands where train.py imports it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import train  # type: ignore[import-not-found, unused-ignore]  # examples/gpt

EVERY = 10


def main() -> None:
    """Train until killed; resumes from the newest file."""
    path = Path(sys.argv.pop(1)) / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    args = train.arguments()
    rank, _, device = train.set_up(args.seed)
    gpt = train.GPT(args.layers, args.width, args.heads, args.context, args.dropout).to(device)
    model = train.distributed(gpt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader = train.Batches(train.standard_library(args.characters), args.batch, args.context, seed=rank)
    parts = {"model": gpt, "optimizer": optimizer, "loader": loader}

    first = 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["step"] + 1
    if rank == 0:
        print(f"begins with {first}", flush=True)
    for step in range(first, args.steps):
        inputs, targets = loader.next()
        loss = model(inputs.to(device), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
            if (step + 1) % EVERY == 0:
                torch.save(
                    {**{name: part.state_dict() for name, part in parts.items()}, "step": step}, path.with_suffix(".new")
                )
                os.replace(path.with_suffix(".new"), path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
