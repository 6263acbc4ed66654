"""DLRover's Flash Checkpoint: a save into shared memory that its agent holds, under its own launcher (`dlrover-run`)."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import torch.distributed as dist
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer, StorageType

from ..states import State
from .base import Base


class Dlrover(Base):
    """Memory saves only: nothing is written to storage."""

    def open(self, state: State, folder: Path) -> None:
        """See Backend."""
        super().open(state, folder)
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
        self._ckpt = DdpCheckpointer(str(folder / "dlrover"))

    def save(self, step: int) -> None:
        """See Backend. Raises RuntimeError if nothing was saved: the call itself only logs it."""
        self._ckpt.save_checkpoint(step + 1, self.state.state_dict(), storage_type=StorageType.MEMORY)  # 0 counts as none
        if self._ckpt._engine._cached_step != step + 1:
            raise RuntimeError(f"step {step + 1} was not saved")

    def restore(self) -> float:
        """Views of the segment, copied back: the next save would overwrite what they show."""
        start = time.perf_counter()
        loaded = self._ckpt.load_checkpoint()
        if not loaded:
            raise RuntimeError("there was no snapshot to restore")
        for name, part in self.state.parts().items():
            part.load_state_dict(loaded[name])
        return time.perf_counter() - start

    def close(self) -> None:
        """See Backend."""
        dist.destroy_process_group()


def make(variant: str) -> Dlrover:
    """See `base.make`."""
    return Dlrover()
