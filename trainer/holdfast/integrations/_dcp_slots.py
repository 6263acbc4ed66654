"""Where the ranks' shares of a DCP checkpoint lie, and their metadata as JSON. Neighbour: `dcp`, the face towards torch."""

from __future__ import annotations

import atexit
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from holdfast_core import arena, manifest
from holdfast_core.arena import ArenaError, Slot, SlotState
from holdfast_core.manifest import CorruptShard
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from .._home.directory import DirectoryHome
from .._log import note
from .._state import load, rng
from .._state.codec import dtype_name, dtype_of
from .._state.mapping import Mapped, open_arena
from .._state.sources import Stateful
from ..checkpointer import Checkpointer
from ..errors import HoldfastError

_NAME = "dcp"


@dataclass(frozen=True)
class Item:
    """One value of a state dict: a part of a tensor, or (no `size`) an object as bytes."""

    fqn: str
    offset: tuple[int, ...] | None = None
    sizes: tuple[int, ...] = ()
    size: tuple[int, ...] | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Meta:
    """What a rank saved. `paths`: where each name was in the nested state dict."""

    id: str
    items: tuple[Item, ...]
    paths: tuple[tuple[str, tuple[str | int, ...]], ...]

    @classmethod
    def of(cls, checkpoint_id: str, plan: SavePlan) -> Meta:
        """From DCP's plan of this rank."""
        paths = plan.planner_data if isinstance(plan.planner_data, dict) else {}
        return cls(checkpoint_id, tuple(_item(i) for i in plan.items), tuple((k, tuple(v)) for k, v in paths.items()))

    def to_json(self) -> str:
        """The text that stands in the manifest."""
        items = [[i.fqn, i.offset, i.sizes, i.size, i.dtype] for i in self.items]
        return json.dumps({"id": self.id, "items": items, "paths": self.paths})

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Raises CorruptShard for anything else."""
        try:
            raw = json.loads(text)
            items = tuple(Item(f, _ints(o), tuple(map(int, s)), _ints(g), d) for f, o, s, g, d in raw["items"])
            return cls(raw["id"], items, tuple((name, tuple(path)) for name, path in raw["paths"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptShard(f"bad metadata of DCP: {error}") from error


@dataclass(frozen=True)
class Share:
    """What one rank saved; `values` reads and verifies it, in the order of `meta.items`."""

    meta: Meta
    values: Callable[[], list[Any]]


class Memory:
    """This process's own slots, through a Checkpointer. There is one, whoever reads or writes."""

    def __init__(self) -> None:
        self.meta: Meta | None = None
        self.restored: list[Any] | None = None
        self._values: list[Any] = []
        self.checkpointer = Checkpointer(dcp=self)
        before = rng.capture()
        self.step = self.checkpointer.restore()
        atexit.register(self.checkpointer.close)
        rng.restore(before)  # to load or save is no reason to change what is drawn next

    def state_dict(self) -> dict[str, Any]:
        """For the Checkpointer."""
        assert self.meta is not None
        return {"meta": self.meta.to_json(), "values": self._values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For the Checkpointer."""
        self.meta, self.restored = Meta.from_json(state["meta"]), state["values"]

    def save(self, checkpoint_id: str, step: int, plan: SavePlan, values: list[Any]) -> None:
        """Returns when it is sealed; raises HoldfastError if it is not."""
        self.meta, self._values, self.restored = Meta.of(checkpoint_id, plan), values, None
        self.step = max(step, self.step + 1)
        taken = self.checkpointer.snapshot(self.step) and self.checkpointer.wait()
        self._values = []
        if not taken:
            raise HoldfastError(
                f"step {self.step} was not saved: stderr says why, unless the job's checkpoint.every leaves it out (with DCP "
                "the script decides: set it to {steps: 1})"
            )


@cache
def memory() -> Memory:
    """Made at first use."""
    return Memory()


def find(folder: Any, checkpoint_id: str) -> list[Share]:
    """The shares of the newest whole checkpoint in reach (with that id, if one is given), this rank's first."""
    if folder is None and os.environ.get("HOLDFAST_SOCKET"):
        found = [[own] for own in _own()]
    else:
        path = Path(folder) if folder is not None else memory_folder()
        found = _in_folder(path, int(os.environ.get("RANK", "0")))
    for shares in found:
        if checkpoint_id in ("", shares[0].meta.id):
            return shares if folder is not None or not os.environ.get("HOLDFAST_SOCKET") else _with_others(shares[0])
    there = ", ".join(repr(shares[0].meta.id) for shares in found) or "none"
    raise HoldfastError(f"no checkpoint {checkpoint_id!r} of DCP in reach; there is: {there}")


def memory_folder() -> Path:
    """Where snapshots of this process go without a sidecar."""
    home = memory().checkpointer._home
    assert isinstance(home, DirectoryHome)
    return home.path


def _own() -> list[Share]:
    """Under a sidecar: what was restored, or what has been saved since."""
    own = memory()
    if own.meta is None:
        return []
    if own.restored is not None:
        values = own.restored
        return [Share(own.meta, lambda: values)]
    home = own.checkpointer._home
    mapped, who = home.target(0), home.identity
    sealed = [s for s in mapped.slots() if s.state is SlotState.SEALED and s.attempt == who.attempt]
    return [_share(mapped, slot) for slot in sorted(sealed, key=lambda s: -s.step)]


def _with_others(own: Share) -> list[Share]:
    """This rank's share, and what the other ranks say they have: their bytes are theirs alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [own]
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, own.meta.to_json())
    others = [(rank, text) for rank, text in enumerate(texts) if rank != dist.get_rank()]
    return [own, *(Share(Meta.from_json(text), _out_of_reach(rank)) for rank, text in others)]


def _out_of_reach(rank: int) -> Callable[[], list[Any]]:
    def values() -> list[Any]:
        raise HoldfastError(f"these bytes are in the memory of rank {rank}: load with the sharding that they were saved with")

    return values


def _in_folder(path: Path, first: int) -> list[list[Share]]:
    """Whole checkpoints, newest first."""
    found: dict[tuple[int, int, int], dict[int, tuple[Mapped, Slot]]] = defaultdict(dict)
    for file in sorted(path.glob("rank-*.arena")):
        try:
            mapped = open_arena(file)
        except (ArenaError, OSError) as error:
            note(f"ignoring {file}: {error}")
            continue
        for slot in (s for s in mapped.slots() if s.state is SlotState.SEALED):
            found[slot.step, slot.attempt, mapped.header.world_size][mapped.header.rank] = (mapped, slot)
    whole = [(key, ranks) for key, ranks in sorted(found.items(), reverse=True) if len(ranks) == key[2]]
    return [shares for key, ranks in whole if (shares := _readable(key[0], ranks, first))]


def _readable(step: int, ranks: dict[int, tuple[Mapped, Slot]], first: int) -> list[Share]:
    try:
        return [_share(*ranks[rank]) for rank in sorted(ranks, key=lambda rank: (rank != first, rank))]
    except (CorruptShard, ArenaError) as error:
        note(f"step {step} cannot be used, trying an older one: {error}")
        return []


def _share(mapped: Mapped, slot: Slot) -> Share:
    document = manifest.load(arena.slot_manifest(mapped.buf, mapped.header, slot))
    tree = document.tree.get(_NAME) if isinstance(document.tree, dict) else None
    if not isinstance(tree, dict) or not isinstance(tree.get("meta"), str):
        raise CorruptShard(f"{mapped.path} holds a snapshot that was not saved by HoldfastWriter")

    def values() -> list[Any]:
        sources = {_NAME: Stateful(None)}
        state = load.restore(mapped, slot, sources, rank=document.rank, world_size=document.world_size)
        return list(state[_NAME]["values"])

    return Share(Meta.from_json(tree["meta"]), values)


def merged(metas: Sequence[Meta]) -> Metadata:
    """DCP's description of the whole checkpoint."""
    entries: dict[str, Any] = {}
    for item in (item for meta in metas for item in meta.items):
        if item.size is None:
            entries.setdefault(item.fqn, BytesStorageMetadata())
            continue
        size = torch.Size(item.size)
        entry = entries.setdefault(item.fqn, TensorStorageMetadata(TensorProperties(dtype=dtype_of(item.dtype)), size, []))
        chunk = ChunkStorageMetadata(torch.Size(item.offset or ()), torch.Size(item.sizes))
        if chunk not in entry.chunks:
            entry.chunks.append(chunk)
    return Metadata(entries, planner_data={name: path for meta in metas for name, path in meta.paths})


def _item(item: Any) -> Item:
    if item.tensor_data is None:
        return Item(item.index.fqn)
    chunk, offset = item.tensor_data.chunk, item.index.offset
    name = dtype_name(item.tensor_data.properties.dtype)
    return Item(
        item.index.fqn, None if offset is None else tuple(offset), tuple(chunk.sizes), tuple(item.tensor_data.size), name
    )


def _ints(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(map(int, values))
