"""A snapshot out of a slot, at memory speed: one pass that copies each byte to where it belongs and checksums it on the way.

In this order, so that nothing live is touched before everything that can be known is known:

1. the manifest is checked and each entry must lie inside the slot, with one checksum for each chunk;
2. byte strings and arrays are copied and verified (they are small, and needed to build the state);
3. each leaf gets its destination (`placing`), and the state is built around tensors that do not hold their bytes yet;
4. the pass (`transfer`) fills live tensors and new memory, and compares all checksums;
5. devices and what the pass cannot write to are filled from the slot's verified bytes.

Nothing that is handed out aliases the arena, which the next snapshots overwrite. If the pass meets a wrong checksum, live
tensors are half written: whoever gets CorruptShard from `restore` must not go on with them. The Checkpointer tells its home,
which ends the process (`AgentHome`) or lets the exception end it (`DirectoryHome`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from holdfast_core import arena, manifest
from holdfast_core.arena import Slot
from holdfast_core.checksum import ALGORITHM
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest

from ..errors import StateMismatch
from . import codec, transfer
from .gather import Gathered, gather
from .mapping import Mapped
from .placing import Placing, address_of
from .replicas import NAME as SHARES
from .replicas import ReplicaSet, Shares
from .sources import RESERVED, Source
from .transfer import Move


def restore(
    source: Mapped,
    slot: Slot,
    sources: Mapping[str, Source],
    *,
    rank: int,
    world_size: int,
    replicas: ReplicaSet | None = None,
) -> dict[str, Any]:
    """The state of each source that the snapshot has, and of the RNGs; tensors that live on are already restored.

    `replicas`: the ranks that keep a part each, if the snapshot is of that kind; all of them call this at the same time.
    Raises CorruptShard or ArenaError that says which bytes are wrong, and StateMismatch if the snapshot does not fit.
    """
    with _no_collection():
        return _restore(_area(source, slot), slot.step, sources, _document(source, slot, rank, world_size), replicas)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of small objects that all live on would set off the garbage collector again and again, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _restore(
    area: torch.Tensor, step: int, sources: Mapping[str, Source], document: SlotManifest, replicas: ReplicaSet | None
) -> dict[str, Any]:
    if not isinstance(document.tree, dict):
        raise CorruptShard("the state tree is not an object")
    whole = _gathered(document, area, replicas)
    placing = Placing(whole.entries, whole.areas, lambda entry: _read(area, entry))
    state = {}
    for name, tree in document.tree.items():
        if name in sources:
            state[name] = _build(placing, tree, name, sources[name], whole.entries, step)
        elif name in RESERVED:
            state[name] = codec.decode(tree, placing.bind(tree, None, follow=False))
    transfer.carry_out(placing.moves())
    placing.finish()
    return state


def _gathered(document: SlotManifest, area: torch.Tensor, replicas: ReplicaSet | None) -> Gathered:
    if SHARES not in document.tree:
        return Gathered(document.entries, (area,) * len(document.entries))
    if replicas is None:
        raise StateMismatch(
            "the ranks kept a share each of this snapshot: give the Checkpointer the model in DistributedDataParallel, as when "
            "it was taken, with HOLDFAST_REPLICAS=shares"
        )
    return gather(document.entries, area, Shares.from_json(document.tree[SHARES]), replicas.group)


def _build(placing: Placing, tree: Any, name: str, source: Source, entries: tuple[Entry, ...], step: int) -> Any:
    """The state of one source, whose tensors do not have their bytes yet."""
    try:
        live = source.live(tree, entries)
        return codec.decode(tree, placing.bind(tree, live, follow=source.follow))
    except Exception as error:
        error.add_note(f"holdfast: while {name!r} was compared with the snapshot of step {step}; nothing was restored")
        raise


def verify(source: Mapped, slot: Slot, *, rank: int, world_size: int) -> None:
    """Check a slot in place, without loading it; raises as `restore` does."""
    with _no_collection():
        document, base = _document(source, slot, rank, world_size), _area(source, slot).data_ptr()
        transfer.carry_out([Move(e, base + e.offset, None) for e in document.entries])


def _document(source: Mapped, slot: Slot, rank: int, world_size: int) -> SlotManifest:
    document = manifest.load(arena.slot_manifest(source.buf, source.header, slot))
    if (document.rank, document.world_size) != (rank, world_size):
        whose = f"rank {document.rank} of {document.world_size}"
        raise CorruptShard(f"the slot holds {whose}, this is rank {rank} of {world_size}")
    if document.step != slot.step:
        raise CorruptShard(f"the slot's header says step {slot.step}, its manifest step {document.step}")
    if document.algorithm != ALGORITHM:
        raise CorruptShard(f"checksum algorithm {document.algorithm!r}, this build knows {ALGORITHM!r}")
    for entry in document.entries:
        if entry.offset < 0 or entry.nbytes < 0 or entry.offset + entry.nbytes > slot.data_bytes:
            raise CorruptShard(f"{entry.key}: lies outside the shard's {slot.data_bytes} bytes")
        transfer.check_sums(entry)
    return document


def _area(source: Mapped, slot: Slot) -> torch.Tensor:
    size = arena.slot_data(source.buf, source.header, slot).nbytes
    start = source.header.region(slot.index)
    return source.bytes[start : start + size]


def _read(area: torch.Tensor, entry: Entry) -> bytearray:
    """A byte string in private memory, verified."""
    private = bytearray(entry.nbytes)
    transfer.carry_out([Move(entry, area.data_ptr() + entry.offset, address_of(private) if private else None)])
    return private
