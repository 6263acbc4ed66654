"""The physical limit: tensors copied one by one into warm shared memory, and back."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from pathlib import Path

import torch

WINDOW = 512 << 20  # far beyond any cache; a larger state goes through it again, so that the bound costs no second copy of it


class PlainCopy:
    """Views into a file on tmpfs, shaped like the tensors. `whole`: as large as the state, to copy back from."""

    def __init__(self, tensors: Sequence[torch.Tensor], path: Path, *, whole: bool = False) -> None:
        self._tensors = [t.detach() for t in tensors]
        total = sum(_padded(t) for t in self._tensors)
        largest = max((_padded(t) for t in self._tensors), default=0)
        size = max(total if whole else min(total, WINDOW), largest, 1)
        with open(path, "w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        memory = torch.frombuffer(self._map, dtype=torch.uint8)
        memory.fill_(0)  # warm: every page is there
        self._views = []
        offset = 0
        for tensor in self._tensors:
            if offset + _padded(tensor) > size:
                offset = 0
            part = memory[offset : offset + tensor.nbytes]
            self._views.append(part.view(tensor.dtype).view(tensor.shape))
            offset += _padded(tensor)

    @property
    def nbytes(self) -> int:
        """Bytes that one copy moves."""
        return sum(t.nbytes for t in self._tensors)

    def copy_in(self) -> float:
        """Tensors to shared memory; returns seconds."""
        start = time.perf_counter()
        for view, tensor in zip(self._views, self._tensors, strict=True):
            view.copy_(tensor)
        return time.perf_counter() - start

    def copy_out(self) -> float:
        """Shared memory to the live tensors; returns seconds."""
        start = time.perf_counter()
        for view, tensor in zip(self._views, self._tensors, strict=True):
            tensor.copy_(view)
        return time.perf_counter() - start


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // 64) * 64
