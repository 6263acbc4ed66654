"""A real training loop, the GPT of examples/gpt, with and without a save after every step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import train  # type: ignore[import-not-found, unused-ignore]  # examples/gpt

from ..shared import PlainCopy
from ..states import State
from ..systems import base

_TRIES = 8
_CLOSE = 0.05
_LOOKS = 7
_LONGEST_STEP = 1.0  # seconds
_LEAD_IN = 1  # steps of a block that are not timed: the first has no save behind it


class Task:
    """Verbs: open, calibrate, block, facts, quit."""

    def __init__(self, system: str) -> None:
        self._backend = base.make(system)
        self._folder = Path(os.environ["HOLDFAST_BENCH_FOLDER"])
        self._step = 0

    def open(self, layers: int, width: int, context: int, batch: int = 1) -> dict[str, Any]:
        """Make model, optimizer and data, take a step, get the system ready."""
        torch.manual_seed(1)
        self._model = train.GPT(layers, width, width // 64, context, 0.1)
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)
        self._state = State(self._model, optimizer)
        self._text = train.standard_library(1_000_000)
        self._context = context
        self._batch(batch)
        self._train(save=False)
        self._backend.open(self._state, self._folder)
        return {"torch": torch.__version__, "nbytes": self._state.nbytes, "tensors": len(self._state.tensors())}

    def _batch(self, batch: int) -> None:
        self._loader = train.Batches(self._text, batch, self._context, seed=1)
        self._size = batch

    def _train(self, save: bool) -> float:
        """One step; seconds."""
        start = time.perf_counter()
        inputs, targets = self._loader.next()
        loss = self._model(inputs, targets)
        self._state.optimizer.zero_grad()
        loss.backward()
        if save and not self._backend.fences_itself:
            self._backend.before_change()
        self._state.optimizer.step()
        if save:
            self._backend.save(self._step)
            self._step += 1
        return time.perf_counter() - start

    def calibrate(self, fraction: float, largest: int = 512) -> dict[str, float]:
        """Choose the batch so that a plain copy of the state, done after a step, takes this fraction of the step."""
        plain = PlainCopy(self._state.tensors(), self._folder / "bound", whole=True)
        copies, steps = self._copies(plain), 0.0
        size = 1
        for _ in range(_TRIES):
            self._batch(size)
            steps = min(self._train(save=False) for _ in range(_LOOKS))
            copies = min(copies, self._copies(plain))
            wanted = min(copies / fraction, _LONGEST_STEP)
            better = min(largest, max(1, round(size * wanted / steps)))
            if abs(steps / wanted - 1) < _CLOSE or better == size:
                break
            size = better
        return {"batch": self._size, "copy": copies, "step": steps, "fraction": copies / steps}

    def _copies(self, plain: PlainCopy) -> float:
        """The quickest of some, each after a step: what disturbs a copy only makes it slower."""
        found = []
        for _ in range(_LOOKS):
            self._train(save=False)
            found.append(plain.copy_in())
        return min(found)

    def block(self, save: bool, steps: int) -> dict[str, Any]:
        """So many steps, with a save after each or with none; seconds of each."""
        for _ in range(_LEAD_IN):
            self._train(save)
        times = [self._train(save) for _ in range(steps)]
        self._backend.wait()
        return {"seconds": times}

    def facts(self) -> dict[str, Any]:
        """What the system says about its last save."""
        return self._backend.facts()

    def quit(self) -> None:
        """Let go of everything."""
        self._backend.close()
