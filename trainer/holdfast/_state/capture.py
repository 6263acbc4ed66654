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
from holdfast_core import arena, fastcopy, manifest
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


def copy(leaves: Sequence[Leaf], plan: Plan, target: Mapped, slot: int) -> tuple[Entry, ...]:
    """Bytes of every leaf into the slot's data area; returns the entries with the checksums of what was read.

    The slot's former content is gone from here on. Copy and checksum are one pass over memory (see `holdfast_core.fastcopy`).
    """
    arena.begin(target.buf, target.header, slot, plan.data_bytes)
    start = target.header.region(slot)
    area = target.bytes[start : start + plan.data_bytes]
    with torch.no_grad():
        sources = [_source(leaf, area, entry) for leaf, entry in zip(leaves, plan.entries, strict=True)]
    base, work = area.data_ptr(), []
    for source, entry in zip(sources, plan.entries, strict=True):
        for offset in range(0, entry.nbytes, CHUNK):
            to = base + entry.offset + offset
            read = to if source is None else source.data_ptr() + offset
            work.append((None if source is None else to, read, min(CHUNK, entry.nbytes - offset)))
    pieces = fastcopy.pieces(work)
    fastcopy.run(pieces)
    sums = iter([piece.crc for piece in pieces])
    return tuple(replace(e, checksums=tuple(next(sums) for _ in range(0, e.nbytes, CHUNK))) for e in plan.entries)


def _source(leaf: Leaf, area: torch.Tensor, entry: Entry) -> torch.Tensor | None:
    """The tensor whose memory is, byte for byte, what is to be stored; None if torch has put it into the slot itself."""
    if not isinstance(leaf, torch.Tensor):
        return torch.frombuffer(bytearray(leaf), dtype=torch.uint8) if entry.nbytes else torch.empty(0)
    if leaf.is_cpu and leaf.is_contiguous() and not leaf.is_conj() and not leaf.is_neg():
        return leaf
    if entry.nbytes:
        destination = area[entry.offset : entry.offset + entry.nbytes]
        destination.view(dtype_of(entry.dtype)).view(entry.shape).copy_(leaf)
    return None


def seal(plan: Plan, entries: tuple[Entry, ...], target: Mapped, slot: int, *, step: int, who: Identity, tree: Any) -> Written:
    """Publish the slot with the checksums that `copy` took; raises SnapshotSkipped if fenced or too small."""
    raw = manifest.dump(SlotManifest(step, who.attempt, who.rank, who.world_size, entries, tree))
    try:
        arena.seal(
            target.buf, target.header, slot,
            step=step, attempt=who.attempt, data_bytes=plan.data_bytes, manifest=raw,
        )  # fmt: skip
    except ArenaError as error:
        raise SnapshotSkipped(str(error)) from error
    return Written(slot, plan.data_bytes + len(raw))
