"""Lightning (the package `lightning`).

    trainer = lightning.Trainer(..., callbacks=[HoldfastCallback()])
    trainer.fit(module, loader)

How it gets into the loop: Lightning starts the epoch that was interrupted like any other. When its batch loop begins, the
counters are put back to where they were, and the loader is set to its place: Lightning itself would go on counting, but read
the data from the beginning.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from .._log import note
from .._state import rng
from ..checkpointer import Checkpointer
from ..errors import HoldfastError
from . import _epoch
from ._library import bare_optimizer, require

_lightning = require("lightning.pytorch", "lightning")
_loops = require("lightning.pytorch.loops.loop", "lightning")
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_METRICS = (
    "_callback_metrics",
    "_logged_metrics",
    "_progress_bar_metrics",
)  # of the newest validation, which a schedule may follow
if TYPE_CHECKING:
    _Callback = object
else:
    _Callback = _lightning.Callback


class HoldfastCallback(_Callback):
    """Restores when training starts, takes a snapshot after every optimizer step. `others` are as for `holdfast.Checkpointer`.

    Without a snapshot, `trainer.fit(ckpt_path=...)` does what it always does; with one, the snapshot counts. Raises
    HoldfastError for strategies other than one device and DDP.
    """

    def __init__(self, **others: Any) -> None:
        self._others = others
        self._ckpt: Checkpointer | None = None
        self._loop: _Loop | None = None
        self._resume_rng: dict[str, Any] | None = None
        self._loss: Any = None
        self._taken = 0  # trainer.global_step of the newest snapshot

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Everything is set up: restore it."""
        if self._ckpt is not None:
            note("fit() a second time: it trains without snapshots (one fit() per job)")
            self._ckpt = self._loop = None
            return
        self._loop = _Loop(trainer)
        self._ckpt = _open(trainer, self._loop, self._others)
        before = rng.capture()
        if self._ckpt.restore() >= 0:
            self._resume_rng = rng.capture()
            self._loop.begin()
            rng.restore(before)
        self._taken = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """All of the step before is done, and the next batch is here: the moment that a snapshot stands for."""
        if self._resume_rng is not None:
            rng.restore(self._resume_rng)
            self._resume_rng = None
        elif self._ckpt is not None and trainer.global_step > self._taken:
            self._taken = trainer.global_step
            self._ckpt.snapshot(trainer.global_step - 1, loss=self._loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Where the loader is, before it fetches another batch. Callbacks may exchange weights for validation after this."""
        if self._ckpt is not None and self._loop is not None:
            self._loop.note_position()
            self._loss = outputs.get("loss") if isinstance(outputs, dict) else None
            self._ckpt.fence()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the last snapshot."""
        if self._ckpt is not None:
            self._ckpt.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same."""
        self.on_train_end(trainer, pl_module)


def _open(trainer: Any, loop: _Loop, others: dict[str, Any]) -> Checkpointer:
    if type(trainer.strategy).__name__ not in _STRATEGIES:
        raise HoldfastError(
            f"{type(trainer.strategy).__name__} is not supported: use one device or DDP, or holdfast.Checkpointer"
        )
    sources: dict[str, Any] = {"model": trainer.lightning_module, "precision": trainer.precision_plugin, "loop": loop}
    for number, optimizer in enumerate(trainer.optimizers):
        sources[f"optimizer{number}"] = bare_optimizer(optimizer)
    for number, config in enumerate(trainer.lr_scheduler_configs):
        sources[f"scheduler{number}"] = config.scheduler
    if trainer.datamodule is not None:
        sources["datamodule"] = trainer.datamodule
    return Checkpointer(**sources, **others)


class _Loop:
    """What Lightning's loops and callbacks know, and the place in the data."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] = {}
        self._start: _epoch.State = {}
        self._position: Any = None
        epochs = trainer.fit_loop.epoch_loop
        epochs.on_run_start = functools.partial(self._batches_start, epochs.on_run_start)

    @property
    def _loaders(self) -> list[Any]:
        return list(self._trainer.fit_loop._combined_loader.flattened)

    def state_dict(self) -> dict[str, Any]:
        """For the Checkpointer."""
        callbacks = [(c.state_key, c.state_dict()) for c in self._trainer.callbacks]
        loops = self._trainer.fit_loop.state_dict()
        loops["state_dict"].pop("combined_loader", None)  # it is a batch ahead here; see `note_position`
        return {
            "loops": loops,
            "callbacks": {key: state for key, state in callbacks if state},
            "metrics": {name: dict(getattr(self._trainer._logger_connector, name)) for name in _METRICS},
            "start": self._start,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For the Checkpointer."""
        self._restored, self._start, self._position = state, state["start"], state["position"]
        for callback in self._trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])

    def begin(self) -> None:
        """Go to the start of the epoch that was interrupted. Lightning's own way to restart is switched off."""
        loop = self._trainer.fit_loop
        _load(loop, self._restored["loops"])
        for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
            progress.ready = progress.started = progress.completed = progress.processed
        loop._combined_loader_states_to_load = []
        for name, values in self._restored["metrics"].items():
            getattr(self._trainer._logger_connector, name).update(values)

    def note_position(self) -> None:
        """Keep what the loaders themselves say, if all of them can tell."""
        fetcher = self._trainer.fit_loop._data_fetcher
        states = self._trainer.fit_loop._combined_loader._state_dicts()
        ahead = fetcher.length is None  # then Lightning has fetched a batch more than it has given
        self._position = states if states and len(states) == len(self._loaders) and not ahead else None

    def _batches_start(self, original: Callable[[Any], None], fetcher: Any) -> None:
        """Around the method that starts the batch loop of an epoch."""
        resumed, self._restored = self._restored, {}
        if resumed:
            _epoch.restore(self._start, self._loaders)
            self._go_on(original, fetcher, resumed["loops"])
            return
        self._start, self._position = _epoch.capture(self._loaders), None
        self._iterate(original, fetcher)

    def _iterate(self, original: Callable[[Any], None], fetcher: Any) -> None:
        """Lightning iterates the first epoch's loader at set-up, and draws the order of the data then: do so here again."""
        loop = self._trainer.fit_loop
        if self._trainer.current_epoch == 0 and not loop.restarting and not getattr(loop, "is_resuming", False):
            iter(fetcher)
        original(fetcher)

    def _go_on(self, original: Callable[[Any], None], fetcher: Any, loops: dict[str, Any]) -> None:
        """Counters and loaders to where they were."""
        loop = self._trainer.fit_loop.epoch_loop
        done = int(loops["epoch_loop.batch_progress"]["current"]["completed"])
        if self._position is not None:
            self._trainer.fit_loop._combined_loader._load_state_dicts(self._position)
            self._iterate(original, fetcher)
            fetcher.fetched += done
        elif len(self._loaders) == 1 and _has_batch_sampler(self._loaders[0]):
            with _skipping(self._loaders[0], done):
                self._iterate(original, fetcher)
            fetcher.fetched += done
        else:
            self._iterate(original, fetcher)
            for _ in range(done):
                next(fetcher)
        _load(loop, loops, "epoch_loop.")
        for progress in (loop.batch_progress.total, loop.batch_progress.current):
            progress.reset_on_restart()
        loop.batch_progress.is_last_batch = False


def _load(loop: Any, state: dict[str, Any], prefix: str = "") -> None:
    """What `load_state_dict` of a loop does, without making it restart in its own way."""
    loop._load_from_state_dict(state, prefix)
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for name, value in vars(loop).items():
        if isinstance(value, _loops._Loop):
            _load(value, state, f"{prefix}{name}.")


def _has_batch_sampler(loader: Any) -> bool:
    data = torch.utils.data
    mapped = isinstance(loader, data.DataLoader) and not isinstance(loader.dataset, data.IterableDataset)
    return mapped and isinstance(loader.batch_sampler, data.BatchSampler)


@contextlib.contextmanager
def _skipping(loader: Any, batches: int) -> Iterator[None]:
    """An iterator that is made meanwhile begins after so many batches, of which none is fetched."""
    sampler = loader.batch_sampler
    object.__setattr__(loader, "batch_sampler", _Skipping(sampler, batches))  # DataLoader itself forbids it
    try:
        yield
    finally:
        object.__setattr__(loader, "batch_sampler", sampler)


class _Skipping(torch.utils.data.Sampler[list[int]]):
    """Leaves out the first batches, once: persistent workers keep it. Its length remains the whole one."""

    def __init__(self, sampler: Any, batches: int) -> None:
        self._sampler = sampler
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        batches, self._batches = self._batches, 0
        return itertools.islice(iter(self._sampler), batches, None)

    def __len__(self) -> int:
        return len(self._sampler)
