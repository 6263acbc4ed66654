"""TorchSnapshot: `Snapshot.async_take` to tmpfs, `restore` back."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from torchsnapshot import Snapshot

from .base import Base


class TorchSnapshot(Base):
    """Each save goes to a folder of its own; the one before is removed when the new one is whole."""

    _pending: Any = None
    _last: Path | None = None
    _previous: Path | None = None

    def save(self, step: int) -> None:
        """Waits for the save before, of which there should be one at a time."""
        self.wait()
        path = self.folder / f"snapshot-{step}"
        self._pending = Snapshot.async_take(path=str(path), app_state=self.state.parts())
        self._previous, self._last = self._last, path

    def wait(self) -> None:
        """See Backend."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            if self._previous is not None:
                shutil.rmtree(self._previous, ignore_errors=True)

    def restore(self) -> float:
        """See Backend."""
        start = time.perf_counter()
        Snapshot(path=str(self._last)).restore(app_state=self.state.parts())
        return time.perf_counter() - start

    def close(self) -> None:
        """See Backend."""
        self.wait()


def make(variant: str) -> TorchSnapshot:
    """See `base.make`."""
    return TorchSnapshot()
