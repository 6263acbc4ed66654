"""An arena file mapped into this process. The layout itself is holdfast_core.arena."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from holdfast_core import arena
from holdfast_core.arena import ArenaError, ArenaHeader, Slot, SlotState

from . import ahead


@dataclass(frozen=True)
class Mapped:
    """A mapped arena; it stays mapped as long as something refers to it."""

    path: Path
    header: ArenaHeader
    buf: memoryview
    bytes: torch.Tensor  # the same memory, uint8, writable

    def slots(self) -> list[Slot]:
        """All slots. One whose header is damaged counts as empty: nothing can be restored from it."""
        return [self._slot(i) for i in range(self.header.slots)]

    def _slot(self, index: int) -> Slot:
        try:
            return arena.read_slot(self.buf, index)
        except ArenaError:
            return Slot(index, SlotState.EMPTY)


def open_arena(path: Path) -> Mapped:
    """Map a file and check its header; raises ArenaError, or OSError if it cannot be opened."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size < arena.PAGE:
            raise ArenaError(f"{path}: file has only {size} bytes")
        mapping = ahead.take(fd) or mmap.mmap(fd, size)
    finally:
        os.close(fd)
    buf = memoryview(mapping)
    try:
        header = arena.read_header(buf)
    except ArenaError as error:
        raise ArenaError(f"{path}: {error}") from error
    return Mapped(path, header, buf, torch.frombuffer(buf, dtype=torch.uint8))


def create_arena(path: Path, header: ArenaHeader, attempt: int) -> Mapped:
    """Make a file, all of it backed by real space (no SIGBUS later), and map it; raises OSError, for example ENOSPC."""
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(fd, 0, header.total_bytes)
        with mmap.mmap(fd, header.total_bytes) as mapping, memoryview(mapping) as buf:
            arena.format_arena(buf, header, attempt)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    return open_arena(path)
