"""torch.distributed.checkpoint: `async_save` to tmpfs (default stager, or asynchronous into shared memory), and `load`."""

from __future__ import annotations

import inspect
import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ..states import State
from .base import Base

_SECONDS = 120.0


class Dcp(Base):
    """Each save goes to a folder of its own; the one before is removed when the new one is whole."""

    def __init__(self, shm: bool) -> None:
        self._stager = _shared_memory_stager() if shm else None
        self._staged: Future[Any] | None = None
        self._saved: Future[Any] | None = None
        self._last: Path | None = None

    def open(self, state: State, folder: Path) -> None:
        """See Backend."""
        super().open(state, folder)
        if "no_dist" not in inspect.signature(async_save).parameters:
            raise RuntimeError("this torch's async_save cannot run without a process group")

    def save(self, step: int) -> None:
        """Waits for the save before, of which there can be one at a time."""
        self.wait()
        path = self.folder / f"dcp-{step}"
        kwargs: dict[str, Any] = {"async_stager": self._stager} if self._stager else {}
        answer = async_save(self.state.state_dict(), checkpoint_id=path, no_dist=True, **kwargs)
        if isinstance(answer, Future):
            self._saved = answer
        else:
            self._staged, self._saved = answer.staging_completion, answer.upload_completion
        self._previous, self._last = self._last, path

    def before_change(self) -> None:
        """The asynchronous stager reads from the live tensors until it is done."""
        if self._staged is not None:
            self._staged.result(_SECONDS)
            self._staged = None

    def wait(self) -> None:
        """See Backend."""
        self.before_change()
        if self._saved is not None:
            self._saved.result(_SECONDS)
            self._saved = None
            if self._previous is not None:
                shutil.rmtree(self._previous, ignore_errors=True)

    def restore(self) -> float:
        """See Backend."""
        start = time.perf_counter()
        loaded = self.state.state_dict()
        load(loaded, checkpoint_id=self._last, no_dist=True)
        for name, part in self.state.parts().items():
            part.load_state_dict(loaded[name])
        return time.perf_counter() - start

    def close(self) -> None:
        """See Backend."""
        self.wait()
        if self._stager is not None:
            self._stager.close()


def _shared_memory_stager() -> DefaultStager:
    """Pinned memory and copies that do not block are for accelerators only."""
    return DefaultStager(
        StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=False)
    )


def make(variant: str) -> Dcp:
    """See `base.make`."""
    return Dcp(variant == "shm")
