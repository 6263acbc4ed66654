"""Holdfast itself, with snapshots in a local directory on tmpfs; the mode comes from HOLDFAST_CAPTURE."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from holdfast import Checkpointer

from ..states import State
from .base import Base

_SECONDS = 60.0


class Holdfast(Base):
    """See the module."""

    fences_itself = True

    def open(self, state: State, folder: Path) -> None:
        """See Backend."""
        super().open(state, folder)
        self._ckpt = Checkpointer(**state.parts())
        self._ckpt.restore()

    def save(self, step: int) -> None:
        """See Backend. Raises RuntimeError if the snapshot was skipped: a skipped one costs nothing and would flatter."""
        if not self._ckpt.snapshot(step):
            raise RuntimeError(f"the snapshot of step {step} was skipped: {self._ckpt.report()}")

    def before_change(self) -> None:
        """Until everything is copied: for changes by hand."""
        self._ckpt.fence()

    def wait(self) -> None:
        """See Backend."""
        if not self._ckpt.wait(_SECONDS):
            raise RuntimeError(f"the snapshot was not sealed: {self._ckpt.report()}")

    def restore(self) -> float:
        """A new Checkpointer, as after a restart; the old one lets go of the directory first."""
        self._ckpt.close()
        self._ckpt = Checkpointer(**self.state.parts())
        start = time.perf_counter()
        step = self._ckpt.restore()
        seconds = time.perf_counter() - start
        if step < 0:
            raise RuntimeError("there was no snapshot to restore")
        return seconds

    def facts(self) -> dict[str, Any]:
        """The capture report."""
        return dataclasses.asdict(self._ckpt.report())

    def close(self) -> None:
        """See Backend."""
        self._ckpt.close()


def make(variant: str) -> Holdfast:
    """See `base.make`."""
    return Holdfast()
