"""torch.distributed.checkpoint in Holdfast's memory: code for `dcp.save`, `dcp.async_save` and `dcp.load` works as it is.

    dcp.save(state, storage_writer=HoldfastWriter())
    dcp.load(state, storage_reader=HoldfastReader())

Each rank keeps the items of its own state dict in its slot, also those that DCP would let another rank write: so a rank
restores from its own memory. The metadata is JSON in the slot's manifest. A step counts when all ranks have sealed it.
Neighbours: `_dcp_slots` finds the slots and knows the JSON. Why it is built on the Checkpointer: docs/decisions/007.
"""

from __future__ import annotations

import io
import re
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ..errors import HoldfastError
from . import _dcp_slots
from ._dcp_slots import Share

_NUMBER = re.compile(r"(\d+)\D*$")


def last_step() -> int:
    """The step of the newest checkpoint that all ranks have, -1 if there is none: whether there is something to load."""
    return _dcp_slots.memory().step


class HoldfastWriter(StorageWriter):
    """Saves into the rank's slot. The last number in `checkpoint_id` is the step if it is new, else steps are counted.

    Raises HoldfastError (through DCP's CheckpointException) if a snapshot could not be taken: nothing was saved then, and
    the one before is still there.
    """

    def __init__(self) -> None:
        self._items: SavePlan | None = None
        self._id = ""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Another checkpoint begins."""
        self._id = "" if checkpoint_id is None else str(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Restore has to come first, also if nothing of it is used: it tells which slots are free."""
        _dcp_slots.memory()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Remember all items of this rank, before DCP gives each replicated one to a single rank."""
        if plan.usable:  # else DCP found that the plan is the one of the last time
            self._items = plan
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Into the slot; returns when it is sealed, so that the state may change afterwards."""
        own = self._items or plan
        values = [planner.resolve_data(item) for item in own.items]
        plain = [v.getvalue() if isinstance(v, io.BytesIO) else v.detach() for v in values]
        _dcp_slots.memory().save(self._id, _step_of(self._id), own, plain)
        sizes = [len(v) if isinstance(v, bytes) else v.nbytes for v in plain]
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, size, None) for item, size in zip(own.items, sizes, strict=True)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """All ranks have sealed: that is the commit. DCP gets here only if no rank raised."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Any will do."""
        return True


class HoldfastReader(StorageReader):
    """Loads what HoldfastWriter saved: the newest step, or the one with that `checkpoint_id` if it is still there.

    `folder`: a directory of snapshots (`HOLDFAST_DIR`) of any number of ranks, to load it with another sharding. Without it,
    the job's own memory: under a sidecar a rank reaches its own slot only, and loads what it saved; in a local
    directory all slots.
    Raises HoldfastError if there is none, or for bytes that are out of reach.
    """

    def __init__(self, folder: Any = None) -> None:
        self._folder = folder
        self._shares: list[Share] = []
        self._where: dict[MetadataIndex, tuple[int, int]] = {}
        self._id = ""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Another checkpoint is wanted."""
        self._id = "" if checkpoint_id is None else str(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """From the slots in reach; under a sidecar, all ranks tell each other what they have."""
        self._shares = _dcp_slots.find(self._folder, self._id)
        self._where = {}
        for number, share in enumerate(self._shares):
            for position, item in enumerate(share.meta.items):
                self._where.setdefault(MetadataIndex(item.fqn, item.offset), (number, position))
        return _dcp_slots.merged([share.meta for share in self._shares])

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """One rank's slot after the other; its bytes are verified before any of them is used."""
        by_share: dict[int, list[ReadItem]] = {}
        for item in plan.items:
            by_share.setdefault(self._where[item.storage_index][0], []).append(item)
        for number, items in sorted(by_share.items()):
            values = self._shares[number].values()
            for item in items:
                _give(planner, item, values[self._where[item.storage_index][1]])
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Any will do."""
        return True


def _give(planner: LoadPlanner, item: ReadItem, value: torch.Tensor | bytes) -> None:
    if item.type is LoadItemType.BYTE_IO:
        if not isinstance(value, bytes):
            raise HoldfastError(f"{item.storage_index.fqn} was saved as a tensor, and is to be loaded as another object")
        planner.load_bytes(item, io.BytesIO(value))
        return
    if not isinstance(value, torch.Tensor):
        raise HoldfastError(f"{item.storage_index.fqn} was not saved as a tensor")
    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        value = value.narrow(dimension, start, length)
    target = planner.resolve_tensor(item).detach()
    if target.size() != value.size():
        raise HoldfastError(f"{item.storage_index.fqn} is {list(target.size())} here and {list(value.size())} in memory")
    target.copy_(value)
    planner.commit_tensor(item, target)


def _step_of(checkpoint_id: str) -> int:
    found = _NUMBER.search(checkpoint_id)
    return int(found[1]) if found else -1
