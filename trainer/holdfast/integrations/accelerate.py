"""Hugging Face Accelerate: what `accelerator.prepare` returned, and the place in the prepared loader.

model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
ckpt = checkpointer(accelerator, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
for batch in ckpt.batches(epochs=3):
    with accelerator.accumulate(model):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._state import rng
from ..checkpointer import Checkpointer
from ..errors import HoldfastError
from . import _epoch
from ._library import bare_optimizer, require

_accelerate = require("accelerate")
_END = object()


def checkpointer(
    accelerator: Any, *, model: Any, optimizer: Any, loader: Any, scheduler: Any = None, **others: Any
) -> AcceleratedCheckpointer:
    """For what `accelerator.prepare` returned; `others` are as for `holdfast.Checkpointer`.

    Raises HoldfastError for FSDP, DeepSpeed and Megatron.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise HoldfastError(f"accelerate with {kind} is not supported: use DDP, or holdfast.Checkpointer")
    place = _Place(loader)
    inner = Checkpointer(
        model=accelerator.unwrap_model(model),
        optimizer=bare_optimizer(optimizer),
        scheduler=scheduler,
        scaler=accelerator.scaler,
        place=place,
        **others,
    )
    return AcceleratedCheckpointer(accelerator, inner, place)


class AcceleratedCheckpointer:
    """Yields the batches, and takes a snapshot after each optimizer step. Made by `checkpointer`.

    `checkpointer` is the `holdfast.Checkpointer` in it. `loss` may be set in each step, to be shown in the job's status.
    """

    def __init__(self, accelerator: Any, inner: Checkpointer, place: _Place) -> None:
        self.checkpointer = inner
        self.loss: Any = None
        self._accelerator = accelerator
        self._place = place
        self._resume: _epoch.State | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._place.steps

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the batches come from."""
        return self._place.epoch

    def batches(self, epochs: int) -> Iterator[Any]:
        """Restores first, then yields the batches that are left of so many epochs.

        When the next batch is asked for, a snapshot is taken if the gradients were applied (`accelerator.sync_gradients`).
        """
        before = rng.capture()
        if self.checkpointer.restore() >= 0:
            self._resume = {"rng": rng.capture(), "generators": self._place.generators}
            rng.restore(before)  # what is drawn before the epoch starts has no part in it
        try:
            while self._place.epoch < epochs:
                yield from self._epoch()
                self._place.next_epoch()
        finally:
            self.checkpointer.close()

    def _epoch(self) -> Iterator[Any]:
        iterator = self._place.start(resumed=self._resume is not None)
        due = False
        while True:
            self._place.before_next()
            batch = next(iterator, _END)
            if self._resume is not None:  # here, with the next batch at hand, the snapshot was taken
                _epoch.restore(self._resume, [self._place.loader])
                self._resume = None
            elif due:
                self._snapshot()
            if batch is _END:
                return
            yield batch
            due = bool(self._accelerator.sync_gradients)
            self._place.count(stepped=due)

    def _snapshot(self) -> None:
        self.checkpointer.snapshot(self._place.steps - 1, loss=self.loss)
        self.loss = None


class _Place:
    """Where training is: steps, epoch, batches seen of it, and the random states of its start.

    A stateful loader tells its position itself; of another one, the batches that were seen are skipped.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.steps = self.epoch = 0
        self.generators: list[Any] = []
        self._batches = 0
        self._start: _epoch.State = {}
        self._position: Any = None
        self._stateful = hasattr(getattr(loader, "base_dataloader", loader), "state_dict")
        self._untouched = self._stateful

    def state_dict(self) -> dict[str, Any]:
        """For the Checkpointer."""
        return {
            "steps": self.steps,
            "epoch": self.epoch,
            "batches": self._batches,
            "start": self._start,
            "generators": _epoch.capture([self.loader])["generators"],
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For the Checkpointer."""
        self.steps, self.epoch, self._batches = state["steps"], state["epoch"], state["batches"]
        self._start, self.generators, self._position = state["start"], state["generators"], state["position"]

    def start(self, resumed: bool) -> Iterator[Any]:
        """An iterator over what is left of the epoch."""
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self.epoch)
        if not resumed:
            if self._untouched:  # it made an iterator when it was prepared, and drew numbers for it that no later epoch draws
                self.loader.load_state_dict({})
            self._untouched = False
            self._start = _epoch.capture([self.loader])
            return iter(self.loader)
        _epoch.restore(self._start, [self.loader])
        if not self._stateful:
            return iter(_accelerate.skip_first_batches(self.loader, self._batches))
        if self._position["_iterator_finished"]:
            return iter(())
        self._untouched = False
        self.loader.load_state_dict(self._position)
        return iter(self.loader)

    def before_next(self) -> None:
        """The loader's own position, as long as it still is after the batch that was trained on."""
        if self._stateful and self._batches:
            self._position = self.loader.state_dict()

    def count(self, stepped: bool) -> None:
        """A batch was trained on."""
        self._batches += 1
        self.steps += stepped

    def next_epoch(self) -> None:
        """The loader is at its end."""
        self.epoch, self._batches = self.epoch + 1, 0
