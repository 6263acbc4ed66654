"""The public face: captures the state of training after each step, restores it at the start.

Neighbours: `_state` turns the objects into bytes and back, `_home` is where the bytes live (a sidecar's shared memory, or a
local directory). Nothing in here may stop training: a snapshot that cannot be taken is skipped, reported, and said once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from holdfast_core.arena import ArenaError
from holdfast_core.manifest import CorruptShard

from ._capture.device import LateNumber
from ._capture.engine import Engine
from ._capture.report import CaptureReport
from ._home import open_home
from ._home.base import Home, Located
from ._log import Once, note
from ._rebuild import live
from ._state import ahead, load, replicas, rng
from ._state.sources import Source, ValueSource, make

_RNG = "rng"


class Checkpointer:
    """Keeps training resumable, bit for bit, after every step.

    Example::

        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
        for step in ckpt.steps(total):      # restores first: starts at the step after the one restored
            loss = train_step(...)
            ckpt.snapshot(step, loss=loss)

    Any object with `state_dict()` and `load_state_dict()` can be given, under any name; so can plain values (numbers, strings,
    tensors, NumPy arrays, dicts and lists of them), of which dicts, lists and tensors are restored in place and others are
    read and replaced as `ckpt["name"]`. None is ignored. The random states of Python, NumPy, torch and CUDA are captured
    without asking.
    """

    def __init__(
        self,
        *,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        loader: Any = None,
        scaler: Any = None,
        **others: Any,
    ) -> None:
        named = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader, "scaler": scaler}
        given = {name: target for name, target in {**named, **others}.items() if target is not None}
        self._sources: dict[str, Source] = {name: make(name, target) for name, target in given.items()}
        self._given = tuple(given.values())
        self._home: Home = open_home()
        self._restored_step: int | None = None
        self._loss: float | None = None
        self._in_steps = False
        self._last = -1
        self._once = Once()
        self._late_loss: LateNumber | None = None
        self._engine = Engine(self._sources, self._home, lambda topic, text: self._once.note(topic.partition(":")[0], text))
        live.register(self)

    def __getitem__(self, name: str) -> Any:
        """The current value of a plain value that was given under this name."""
        return self._value(name).value

    def __setitem__(self, name: str, value: Any) -> None:
        self._value(name).value = value

    def _value(self, name: str) -> ValueSource:
        source = self._sources.get(name)
        if not isinstance(source, ValueSource):
            raise KeyError(f"{name!r} is not a plain value of this Checkpointer")
        return source

    def steps(self, total: int) -> Iterator[int]:
        """Restore, then yield the steps that are left of 0..total-1, reporting each one when it is finished."""
        first = self.restore() + 1
        if first >= total:
            note(f"step {first - 1} is already done, and {total} steps were asked for: nothing is left to do")
        self._in_steps, self._last = True, total - 1
        try:
            for step in range(first, total):
                self._loss = None
                yield step
                self._home.progress(step, self._loss)
        finally:
            self._in_steps = False
            self.close()

    def restore(self) -> int:
        """Load the newest snapshot that all ranks have; returns its step, -1 if there is none. Later calls do nothing."""
        if self._restored_step is None:
            start = time.monotonic()
            located = self._home.locate()
            who = self._home.identity
            self._engine.replicas = replicas.find(self._given, who.rank, who.world_size)
            self._restored_step = self._load(located) if located else -1
            ahead.drop()
            self._home.restored(self._restored_step, time.monotonic() - start)
        return self._restored_step

    def _load(self, located: Located) -> int:
        who, slot = self._home.identity, located.slot
        try:
            state = load.restore(
                located.source, slot, self._sources, rank=who.rank, world_size=who.world_size, replicas=self._engine.replicas
            )
        except (CorruptShard, ArenaError) as error:
            return self._load(self._home.refuse(slot.step, str(error)))  # all that is half loaded is written over
        self._apply(state, slot.step)
        return slot.step

    def _apply(self, state: dict[str, Any], step: int) -> None:
        for name, source in self._sources.items():
            if name not in state:
                note(f"the snapshot of step {step} has no {name!r}: it keeps its initial state")
                continue
            try:
                source.load(state[name])
            except Exception as error:
                error.add_note(f"holdfast: while {name!r} was restored from the snapshot of step {step}")
                raise
        rng.restore(state[_RNG])  # last: loading may draw numbers

    def snapshot(self, step: int, loss: Any = None) -> bool:
        """Capture the state after `step`, before the next one begins. Returns whether it is being taken.

        The copy may still run when this returns: it is fenced from what would change the tensors (see `fence`). A snapshot that
        is not due (`checkpoint.every`) is not taken; one that cannot be taken is reported with the reason. Training goes on.
        Raises UnsupportedValue (a TypeError) in the first call if something given to the Checkpointer cannot be stored.
        """
        self._loss = self._number(loss)
        due = step == self._last or self._engine.is_due(step)  # the end of training is worth keeping, whatever the interval
        taken = due and not self._engine.snapshot(step)
        if not self._in_steps:
            self._home.progress(step, self._loss)  # a loop of the user's own: nobody else tells
        return taken

    def fence(self) -> None:
        """Return when everything of the last snapshot is copied: call it before you change parameters by hand.

        Optimizers of torch need no call: their steps wait by themselves, and for what they change only.
        """
        self._engine.fence()

    def wait(self, timeout: float = 60.0) -> bool:
        """Until the last snapshot is sealed, `timeout` seconds at most; False if it was not, or was dropped."""
        return self._engine.wait(timeout)

    def report(self) -> CaptureReport:
        """What snapshots cost so far, and how they are copied."""
        return self._engine.report()

    def abandon(self) -> None:
        """Give up the snapshot that is under way."""
        self._engine.abandon()

    def close(self) -> None:
        """Finish the snapshot that is under way and say what is left to say to the sidecar. Called at the end of `steps`."""
        self._engine.close()
        self._home.close()

    def _number(self, loss: Any) -> float | None:
        """The loss for the status. One on a device is fetched behind the step, and told with the next."""
        if not (isinstance(loss, torch.Tensor) and loss.is_cuda):
            return _number(loss)
        before, self._late_loss = self._late_loss, LateNumber(loss)
        return before.get() if before is not None else None


def _number(loss: Any) -> float | None:
    """What is no number is left out: it only informs."""
    try:
        number = float(getattr(loss, "detach", lambda: loss)())
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None  # JSON has no NaN
