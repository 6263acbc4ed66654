"""A slot of the arena: choose one, publish it. In between, its former content is gone and the other slots are untouched."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_core import arena, manifest
from holdfast_core.arena import ArenaError

from .._state.mapping import Mapped
from ..errors import SnapshotSkipped


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


@dataclass(frozen=True)
class Content:
    """What is written behind the data: parts of the manifest that are JSON already, and the checksums in their order."""

    data_bytes: int
    sums: Sequence[array[int]]
    entries: Sequence[bytes]
    tree: Sequence[bytes]


def choose(target: Mapped, who: Identity, step: int) -> int:
    """The slot to write; raises SnapshotSkipped when there is none, or when a newer attempt has taken over."""
    if arena.fence(target.buf) != who.attempt:
        raise SnapshotSkipped(f"fenced: attempt {arena.fence(target.buf)} writes now")
    committed, floor = arena.committed(target.buf), arena.floor(target.buf)
    kept = arena.kept(target.buf)
    slot = arena.choose_slot(target.slots(), committed, time.monotonic_ns(), floor, kept) if step >= floor else None
    if slot is None:
        raise SnapshotSkipped("no free slot: the kept steps are not yet committed by all ranks, being uploaded, or protected")
    return slot


def publish(target: Mapped, slot: int, who: Identity, step: int, content: Content) -> Written:
    """Seal the slot; raises SnapshotSkipped if fenced or too small."""
    raw = manifest.assemble(
        step=step, attempt=who.attempt, rank=who.rank, world_size=who.world_size,
        tree=b"".join(content.tree),
        sums="".join(map(manifest.pack_sums, content.sums)), entries=b",".join(e for e in content.entries if e),
    )  # fmt: skip
    try:
        arena.seal(
            target.buf, target.header, slot,
            step=step, attempt=who.attempt, data_bytes=content.data_bytes, manifest=raw,
        )  # fmt: skip
    except ArenaError as error:
        raise SnapshotSkipped(str(error)) from error
    return Written(slot, content.data_bytes + len(raw))
