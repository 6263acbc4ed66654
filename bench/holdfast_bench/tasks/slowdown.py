"""One rank of the GPT of examples/gpt, under DDP, with a snapshot after every step. All ranks are told the same at the same
time. Run by a launcher (`pods`), so that its snapshots lie in a sidecar's memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import train  # type: ignore[import-not-found, unused-ignore]  # examples/gpt
from holdfast import Checkpointer

from ..shared import PlainCopy
from ..states import State

_LOOKS = 7


class Task:
    """Verbs: open, batch, look, block, quit."""

    def __init__(self, system: str) -> None:
        self._rank, _, _ = train.set_up(1)
        torch.set_num_threads(1)
        self._folder = Path(os.environ["HOLDFAST_BENCH_FOLDER"])
        self._step = 0

    def open(self, layers: int, width: int, context: int, batch: int = 1) -> dict[str, Any]:
        """Make model, optimizer and data, take a step."""
        model = train.distributed(train.GPT(layers, width, width // 64, context, 0.1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self._state = State(model, optimizer)
        self._text, self._context = train.standard_library(1_000_000), context
        self.batch(batch)
        self._ckpt = Checkpointer(model=model, optimizer=optimizer)
        self._ckpt.restore()
        self._train(save=False)
        return {"torch": torch.__version__, "nbytes": self._state.nbytes}

    def batch(self, size: int) -> None:
        """Sequences a step from now on."""
        self._loader = train.Batches(self._text, size, self._context, seed=1 + self._rank)

    def _train(self, save: bool) -> tuple[float, bool]:
        """One step; seconds, and whether its snapshot was taken."""
        start = time.perf_counter()
        inputs, targets = self._loader.next()
        loss = self._state.model(inputs, targets)
        self._state.optimizer.zero_grad()
        loss.backward()
        self._state.optimizer.step()
        taken = self._ckpt.snapshot(self._step) if save else False
        self._step += 1
        return time.perf_counter() - start, taken

    def look(self) -> dict[str, float]:
        """Seconds of a step without a snapshot, and of a plain copy of the state after one: the quickest of some."""
        if not hasattr(self, "_plain"):
            self._plain = PlainCopy(self._state.tensors(), self._folder / "bound", whole=True)
        steps, copies = [], []
        for _ in range(_LOOKS):
            steps.append(self._train(save=False)[0])
            copies.append(self._plain.copy_in())
        dist.barrier()
        return {"step": min(steps), "copy": min(copies)}

    def block(self, steps: int) -> dict[str, Any]:
        """So many steps, each with its snapshot: their seconds, how many snapshots were skipped, the last one's number."""
        took, taken = zip(*(self._train(save=True) for _ in range(steps)), strict=True)
        return {"seconds": took, "skipped": taken.count(False), "last": self._step - 1}

    def quit(self) -> None:
        """Let go of everything."""
        self._ckpt.close()
