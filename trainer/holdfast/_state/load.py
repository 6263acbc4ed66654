"""A snapshot out of a slot: every byte is copied into private memory first and verified there, so that what is believed is
exactly what is used, and nothing aliases the arena that the next snapshots overwrite.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from holdfast_core import arena, manifest
from holdfast_core.arena import Slot
from holdfast_core.checksum import ALGORITHM, first_mismatch
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest

from .codec import BYTES, Leaf, dtype_of
from .mapping import Mapped


@dataclass(frozen=True)
class Loaded:
    """A verified snapshot in private memory."""

    manifest: SlotManifest
    leaves: tuple[Leaf, ...]

    @property
    def tree(self) -> Any:
        """The encoded state."""
        return self.manifest.tree


def load(source: Mapped, slot: Slot, *, rank: int, world_size: int) -> Loaded:
    """Copy and verify; raises CorruptShard or ArenaError that says which bytes are wrong."""
    document = _manifest(source, slot, rank, world_size)
    data = arena.slot_data(source.buf, source.header, slot)
    return Loaded(document, tuple(_leaf(data, entry) for entry in document.entries))


def verify(source: Mapped, slot: Slot, *, rank: int, world_size: int) -> None:
    """Check a slot in place, without loading it; raises as `load` does."""
    document = _manifest(source, slot, rank, world_size)
    manifest.verify(document, arena.slot_data(source.buf, source.header, slot))


def _manifest(source: Mapped, slot: Slot, rank: int, world_size: int) -> SlotManifest:
    document = manifest.load(arena.slot_manifest(source.buf, source.header, slot))
    if (document.rank, document.world_size) != (rank, world_size):
        whose = f"rank {document.rank} of {document.world_size}"
        raise CorruptShard(f"the slot holds {whose}, this is rank {rank} of {world_size}")
    if document.step != slot.step:
        raise CorruptShard(f"the slot's header says step {slot.step}, its manifest step {document.step}")
    if document.algorithm != ALGORITHM:
        raise CorruptShard(f"checksum algorithm {document.algorithm!r}, this build knows {ALGORITHM!r}")
    return document


def _leaf(data: memoryview, entry: Entry) -> Leaf:
    source = manifest.entry_data(data, entry)
    if entry.dtype == BYTES:
        private = bytes(source)
        _check(memoryview(private), entry)
        return private
    tensor = _empty(entry)
    if entry.nbytes:
        tensor.reshape(-1).view(torch.uint8).copy_(torch.frombuffer(source, dtype=torch.uint8))
        _check(_memory(tensor), entry)
    return tensor


def _check(private: memoryview, entry: Entry) -> None:
    bad = first_mismatch(private, entry.checksums)
    if bad is not None:
        raise CorruptShard(f"{entry.key}: checksum mismatch in chunk {bad}")


def _empty(entry: Entry) -> torch.Tensor:
    """torch's own memory: some kernels give other last bits for another alignment."""
    dtype = dtype_of(entry.dtype)
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.nbytes:
        raise CorruptShard(f"{entry.key}: {entry.nbytes} bytes do not make {entry.dtype} of shape {entry.shape}")
    return torch.empty(entry.shape, dtype=dtype)


def _memory(tensor: torch.Tensor) -> memoryview:
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr()))
