"""The Trainer of Hugging Face transformers.

    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.add_callback(HoldfastCallback(trainer))
    trainer.train()

How it gets into the loop: Trainer can resume from a folder. Holdfast restores model and optimizer from memory, then lets
Trainer resume from a folder that holds nothing but `trainer_state.json`, so that Trainer itself skips the batches it has seen;
its methods that would read other files from there are replaced, on this one Trainer, by ones that take what was restored.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._log import note
from .._state import rng
from ..checkpointer import Checkpointer
from ..errors import HoldfastError
from . import _epoch
from ._library import Late, bare_optimizer, require

_transformers = require("transformers")
_trainer_callback = require("transformers.trainer_callback")
if TYPE_CHECKING:
    _TrainerCallback = object
else:
    _TrainerCallback = _transformers.TrainerCallback

_LOGS_KEPT = 200  # entries of state.log_history in a snapshot: it grows without end
_LOSS_COUNTERS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "current_flos")


class HoldfastCallback(_TrainerCallback):
    """Restores before the first step, takes a snapshot after every optimizer step. Give it to `trainer.add_callback`.

    Without a snapshot, `trainer.train(resume_from_checkpoint=...)` does what it always does; with one, the snapshot counts.
    Raises HoldfastError for what it does not support: FSDP, DeepSpeed, TPUs, `auto_find_batch_size`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._loop = _Loop(trainer)
        self._scheduler = Late()
        self._ckpt: Checkpointer | None = None
        self._folder = ""  # what Trainer is to resume from, until it has read it
        self._groups: list[dict[str, Any]] = []
        self._resume_rng: dict[str, Any] | None = None
        self._resuming = False
        _refuse(trainer)
        trainer._inner_training_loop = functools.wraps(trainer._inner_training_loop)(
            functools.partial(self._train, trainer._inner_training_loop)
        )
        for name in ("_load_optimizer_and_scheduler", "_load_rng_state", "_load_scaler"):
            setattr(trainer, name, functools.partial(self._load, name, getattr(trainer, name)))

    def _train(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around Trainer's loop: restore first, and let it resume."""
        if self._ckpt is not None:
            note("this Trainer trains a second time: it does so without snapshots (one train() per job)")
            return original(*args, **kwargs)
        self._ckpt = self._open()
        before = rng.capture()
        step = self._ckpt.restore()
        if step >= 0:
            self._resume_rng, self._resuming = rng.capture(), True
            self._groups = copy.deepcopy([_settings(g) for g in bare_optimizer(self._trainer.optimizer).param_groups])
            self._folder = kwargs["resume_from_checkpoint"] = self._loop.write()
            rng.restore(before)  # what prepares the loop draws as it did in the first start
        try:
            return original(*args, **kwargs)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ckpt.close()

    def _open(self) -> Checkpointer:
        trainer = self._trainer
        trainer.create_optimizer()  # Trainer would do it a little later, and keeps one that exists
        return Checkpointer(
            model=trainer.model,
            optimizer=bare_optimizer(trainer.optimizer),
            scheduler=self._scheduler,
            scaler=getattr(trainer.accelerator, "scaler", None),
            trainer=self._loop,
        )

    def _load(self, name: str, original: Callable[[str | None], None], checkpoint: str | None) -> None:
        """In place of Trainer's methods of that name: the state is restored already, or waits here."""
        if not self._resuming or checkpoint != self._folder:
            return original(checkpoint)
        if name == "_load_optimizer_and_scheduler":
            self._scheduler.arrive(self._trainer.lr_scheduler)
            for group, settings in zip(bare_optimizer(self._trainer.optimizer).param_groups, self._groups, strict=True):
                group.update(settings)  # a scheduler sets the learning rate of its first step when it is created
            shutil.rmtree(self._folder, ignore_errors=True)
        return None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The loop is set up: its counters can be put back."""
        if self._resuming:
            self._loop.apply()
        else:
            self._scheduler.arrive(self._trainer.lr_scheduler)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Remember how the epoch began, or go back to where the resumed one began."""
        if self._resuming:
            _epoch.restore(self._loop.epoch, [train_dataloader])
            self._resuming = False
        else:
            self._loop.epoch = _epoch.capture([train_dataloader])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation may follow, and other callbacks that exchange weights for it."""
        if self._ckpt is not None:
            self._ckpt.fence()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All of the step before is done, and its successor's batches are here: the moment that a snapshot stands for."""
        if self._resume_rng is not None:
            rng.restore(self._resume_rng)
            self._resume_rng = None
        elif state.global_step > 0 and self._ckpt is not None:
            self._ckpt.snapshot(state.global_step - 1, loss=self._loop.loss())


class _Loop:
    """What Trainer's loop knows: its state, what the callbacks know, running sums of the loss, the start of the epoch."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] = {}
        self.epoch: _epoch.State = {}

    def state_dict(self) -> dict[str, Any]:
        """Trainer's state as the text of its own `trainer_state.json`."""
        state, exportable = self._trainer.state, _trainer_callback.ExportableState
        callbacks = [c for c in self._trainer.callback_handler.callbacks if isinstance(c, exportable)]
        recent = state.log_history[-_LOGS_KEPT:]
        document = dataclasses.asdict(dataclasses.replace(state, log_history=recent, stateful_callbacks=callbacks))
        counters = {name: getattr(self._trainer, name) for name in _LOSS_COUNTERS if hasattr(self._trainer, name)}
        counters = {name: value.clone() if hasattr(value, "clone") else value for name, value in counters.items()}
        return {"state": json.dumps(document, default=float), "counters": counters, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until the loop is set up."""
        self._restored = state
        self.epoch = state["epoch"]

    def write(self) -> str:
        """A new folder that Trainer can resume its counters from."""
        folder = tempfile.mkdtemp(prefix="holdfast-resume-")
        Path(folder, "trainer_state.json").write_text(self._restored["state"])
        return folder

    def apply(self) -> None:
        """Put counters and the callbacks' state back."""
        for name, value in self._restored["counters"].items():
            setattr(self._trainer, name, value)
        saved = json.loads(self._restored["state"])["stateful_callbacks"]
        for callback in self._trainer.callback_handler.callbacks:
            states = saved.get(type(callback).__name__, [])
            states = states if isinstance(states, list) else [states]
            if states:
                vars(callback).update(states.pop(0)["attributes"])
                saved[type(callback).__name__] = states
        self._restored = {}

    def loss(self) -> float | None:
        """The newest one that was logged: reading another would wait for the device."""
        logs = self._trainer.state.log_history[-3:]
        return next((entry["loss"] for entry in reversed(logs) if "loss" in entry), None)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _refuse(trainer: Any) -> None:
    for attribute, what in (("is_fsdp_enabled", "FSDP"), ("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_xla_enabled", "XLA")):
        if getattr(trainer, attribute, False):
            raise HoldfastError(f"HoldfastCallback does not support Trainer with {what}: use DDP, or holdfast.Checkpointer")
    if trainer.args.auto_find_batch_size:
        raise HoldfastError("auto_find_batch_size starts training again with another batch size: set the size that fits")
