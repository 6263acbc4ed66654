"""A snapshot into a slot, in three parts: plan (where each leaf goes), copy (the bytes), seal (checksums, then publish).

They are apart so that copying can move behind the next step's forward and backward: planning must see the state at the
end of a step, sealing must come after the last copy. Until the seal, the other slots are untouched and valid.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from holdfast_core import arena, manifest
from holdfast_core.arena import ArenaError
from holdfast_core.checksum import CHUNK
from holdfast_core.manifest import Entry, SlotManifest

from ..errors import SnapshotSkipped
from .codec import Leaf, LeafSpec, dtype_of
from .mapping import Mapped

_MANIFEST_SLACK = 64 << 10  # bytes: numbers in the tree get longer as training goes on
_WORST_CHECKSUM = 0xFFFFFFFF


@dataclass(frozen=True)
class Plan:
    """Where the leaves of a snapshot go. It is kept as long as names, types and shapes stay the same."""

    specs: tuple[LeafSpec, ...]
    entries: tuple[Entry, ...]
    data_bytes: int
    slot_bytes: int  # what a slot must have, with room for a manifest that grows a little


@dataclass(frozen=True)
class Identity:
    """Whose snapshot it is."""

    rank: int
    world_size: int
    attempt: int


@dataclass(frozen=True)
class Written:
    """A published slot."""

    slot: int
    nbytes: int


def make_plan(specs: Sequence[LeafSpec], tree: Any, previous: Plan | None) -> Plan:
    """The previous plan if it still fits, else a new one."""
    if previous is not None and previous.specs == tuple(specs):
        return previous
    bare = [Entry(s.key, s.dtype, s.shape, 0, s.nbytes, global_shape=s.shape) for s in specs]
    entries = manifest.lay_out([replace(e, global_offset=(0,) * len(e.shape)) for e in bare])
    data_bytes = max((e.offset + e.nbytes for e in entries), default=0)
    worst = [replace(e, checksums=(_WORST_CHECKSUM,) * -(-e.nbytes // CHUNK)) for e in entries]
    size = len(manifest.dump(SlotManifest(1 << 48, 1 << 48, 1 << 30, 1 << 30, tuple(worst), tree)))
    return Plan(tuple(specs), entries, data_bytes, arena.slot_bytes_for(data_bytes, size + size // 4 + _MANIFEST_SLACK))


def choose(target: Mapped, who: Identity, step: int) -> int:
    """The slot to write; raises SnapshotSkipped when there is none, or when a newer attempt has taken over."""
    if arena.fence(target.buf) != who.attempt:
        raise SnapshotSkipped(f"fenced: attempt {arena.fence(target.buf)} writes now")
    committed, floor = arena.committed(target.buf), arena.floor(target.buf)
    slot = arena.choose_slot(target.slots(), committed, time.monotonic_ns(), floor) if step >= floor else None
    if slot is None:
        raise SnapshotSkipped("no free slot: the kept steps are not yet committed by all ranks, or being uploaded")
    return slot


def copy(leaves: Sequence[Leaf], plan: Plan, target: Mapped, slot: int) -> None:
    """Bytes of every leaf into the slot's data area. The slot's former content is gone from here on."""
    arena.begin(target.buf, target.header, slot, plan.data_bytes)
    start = target.header.region(slot)
    area = target.bytes[start : start + plan.data_bytes]
    with torch.no_grad():
        for leaf, entry in zip(leaves, plan.entries, strict=True):
            if entry.nbytes:
                _copy_leaf(leaf, area[entry.offset : entry.offset + entry.nbytes], entry)


def _copy_leaf(leaf: Leaf, destination: torch.Tensor, entry: Entry) -> None:
    if not isinstance(leaf, torch.Tensor):
        destination.copy_(torch.frombuffer(bytearray(leaf), dtype=torch.uint8))
    elif leaf.is_contiguous():  # as plain bytes: any dtype, one memcpy
        destination.copy_(leaf.reshape(-1).view(torch.uint8))
    else:
        destination.view(dtype_of(entry.dtype)).view(entry.shape).copy_(leaf)


def seal(plan: Plan, target: Mapped, slot: int, *, step: int, who: Identity, tree: Any) -> Written:
    """Checksum what stands in the slot and publish it; raises SnapshotSkipped if fenced or too small."""
    start = target.header.region(slot)
    data = target.buf[start : start + plan.data_bytes]
    entries = tuple(manifest.with_checksums(e, data) for e in plan.entries)
    raw = manifest.dump(SlotManifest(step, who.attempt, who.rank, who.world_size, entries, tree))
    try:
        arena.seal(
            target.buf, target.header, slot,
            step=step, attempt=who.attempt, data_bytes=plan.data_bytes, manifest=raw,
        )  # fmt: skip
    except ArenaError as error:
        raise SnapshotSkipped(str(error)) from error
    return Written(slot, plan.data_bytes + len(raw))
