"""The slot manifest: what a rank's snapshot consists of, tensor by tensor, with checksums.

It is written by the trainer behind the data of a slot, and travels in the metadata of the rank's safetensors file, so that
each copy of a shard describes and proves itself. `tree` is the state as plain JSON, in which tensors and raw bytes stand
as references to entries (the trainer's codec defines it; nobody else needs to look inside).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import wire
from .arena import align
from .checksum import ALGORITHM, checksums, first_mismatch

REPLICATED = "replicated"  # the same bytes on every rank of the data-parallel group
UNIQUE = "unique"  # this rank's own


class CorruptShard(ValueError):
    """Bytes that do not match their checksum; the text names the entry."""


@dataclass(frozen=True)
class Entry:
    """One tensor or byte string. `offset` and `nbytes` are bytes in the slot's data area.

    `dtype` is torch's name without the prefix (`float32`, `bfloat16`), or `bytes`. `global_shape` and `global_offset` place
    a shard in the whole tensor (for what is not sharded: the shape itself, and zeros).
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksums: tuple[int, ...] = ()
    placement: str = UNIQUE
    global_shape: tuple[int, ...] | None = None
    global_offset: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SlotManifest:
    """A rank's snapshot of one step."""

    step: int
    attempt: int
    rank: int
    world_size: int
    entries: tuple[Entry, ...]
    tree: Any
    algorithm: str = ALGORITHM

    @property
    def data_bytes(self) -> int:
        """Size of the data area, in bytes."""
        return max((e.offset + e.nbytes for e in self.entries), default=0)


def lay_out(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Give every entry its aligned offset, in the order given."""
    placed, offset = [], 0
    for entry in entries:
        placed.append(replace(entry, offset=offset))
        offset = align(offset + entry.nbytes)
    return tuple(placed)


def entry_data(data: memoryview, entry: Entry) -> memoryview:
    """An entry's bytes in the slot's data area; raises CorruptShard if it lies outside."""
    if entry.offset < 0 or entry.nbytes < 0 or entry.offset + entry.nbytes > data.nbytes:
        raise CorruptShard(f"{entry.key}: lies outside the shard's {data.nbytes} bytes")
    return data[entry.offset : entry.offset + entry.nbytes]


def with_checksums(entry: Entry, data: memoryview) -> Entry:
    """The entry with the checksums of what now stands in the data area."""
    return replace(entry, checksums=checksums(entry_data(data, entry)))


def verify(manifest: SlotManifest, data: memoryview) -> None:
    """Compare every entry with its checksums; raises CorruptShard that names the first bad one."""
    if manifest.algorithm != ALGORITHM:
        raise CorruptShard(f"checksum algorithm {manifest.algorithm!r}, this build knows {ALGORITHM!r}")
    for entry in manifest.entries:
        bad = first_mismatch(entry_data(data, entry), entry.checksums)
        if bad is not None:
            raise CorruptShard(f"{entry.key}: checksum mismatch in chunk {bad} of step {manifest.step}")


def dump(manifest: SlotManifest) -> bytes:
    """Compact JSON."""
    return wire.dumps(manifest)


def load(raw: bytes) -> SlotManifest:
    """Parse; raises CorruptShard."""
    try:
        return wire.loads(SlotManifest, raw)
    except wire.WireError as error:
        raise CorruptShard(f"manifest: {error}") from error
