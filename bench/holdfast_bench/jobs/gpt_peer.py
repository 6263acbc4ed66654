"""The same training for torchrun and dlrover-run: `gpt_peer.py --saver torch|dlrover ...`, everything saved after every step.

The model, data and loop are those of examples/gpt/train.py. torch: rank 0 writes a file on tmpfs with torch.save, and renames
it. dlrover: a memory save of the same state dict through its DdpCheckpointer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import train  # type: ignore[import-not-found, unused-ignore]  # examples/gpt

from holdfast_bench.jobs import stamps


class Saver(Protocol):
    """Keeps the state of the newest step."""

    def load(self) -> dict[str, Any] | None:
        """The state to resume from."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep this one."""


class TorchSaver:
    """A file, written by rank 0."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path, self._rank = folder / "last.pt", rank

    def load(self) -> dict[str, Any] | None:
        """See Saver."""
        return torch.load(self._path) if self._path.exists() else None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """See Saver."""
        if self._rank == 0:
            torch.save(state, self._path.with_suffix(".new"))
            os.replace(self._path.with_suffix(".new"), self._path)


class DlroverSaver:
    """Shared memory of the agent; what is loaded are views of it."""

    def __init__(self, folder: Path) -> None:
        from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer, StorageType

        self._ckpt, self._memory = DdpCheckpointer(str(folder / "dlrover")), StorageType.MEMORY

    def load(self) -> dict[str, Any] | None:
        """See Saver."""
        return self._ckpt.load_checkpoint() or None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """See Saver. Step 0 counts as none there."""
        self._ckpt.save_checkpoint(step + 1, state, storage_type=self._memory)


def main() -> None:
    """Train until killed."""
    saver_name = sys.argv.pop(sys.argv.index("--saver") + 1)
    sys.argv.remove("--saver")
    args = train.arguments()
    rank, _, device = train.set_up(args.seed)
    gpt = train.GPT(args.layers, args.width, args.heads, args.context, args.dropout).to(device)
    model = train.distributed(gpt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader = train.Batches(train.standard_library(args.characters), args.batch, args.context, seed=rank)
    folder = Path(os.environ["HOLDFAST_BENCH_STAMPS"])
    saver: Saver = TorchSaver(folder, rank) if saver_name == "torch" else DlroverSaver(folder)

    first = 0
    loaded = saver.load()
    if loaded is not None:
        gpt.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        loader.load_state_dict(loaded["loader"])
        first = loaded["step"] + 1
    for step in range(first, args.steps):
        inputs, targets = loader.next()
        loss = model(inputs.to(device), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"model": gpt.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict(), "step": step}
        saver.save(step, state)
        stamps.put(step)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
