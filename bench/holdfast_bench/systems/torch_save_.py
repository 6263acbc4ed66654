"""torch.save of the state dict to a file on tmpfs, torch.load and load_state_dict back."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from .base import Base


class TorchSave(Base):
    """Writes beside the old file and renames, as a careful script does."""

    def __init__(self, mmap: bool) -> None:
        self._mmap = mmap

    def save(self, step: int) -> None:
        """See Backend."""
        torch.save(self.state.state_dict(), self.folder / "new.pt")
        os.replace(self.folder / "new.pt", self.folder / "last.pt")

    def restore(self) -> float:
        """See Backend."""
        start = time.perf_counter()
        loaded = torch.load(self.folder / "last.pt", mmap=self._mmap)
        for name, part in self.state.parts().items():
            part.load_state_dict(loaded[name])
        return time.perf_counter() - start

    def facts(self) -> dict[str, Any]:
        """The bytes that were written."""
        return {"bytes_copied": (self.folder / "last.pt").stat().st_size}


def make(variant: str) -> TorchSave:
    """See `base.make`."""
    return TorchSave(variant == "mmap")
