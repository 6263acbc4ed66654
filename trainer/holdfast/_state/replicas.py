"""What all ranks of a data-parallel group hold alike, and who of them keeps which part in its snapshot.

With full copies (the default) each rank captures everything. With shares (HOLDFAST_REPLICAS=shares) each captures its part, so
that every byte is copied, uploaded and kept once; at a restore the ranks then send each other their parts (`gather`). In a
rank's tree the leaves keep their numbers, and `replicas` tells which of them it has (`mine`) and who has the others (`held`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from holdfast_core.manifest import CorruptShard, Entry
from torch.nn.parallel import DistributedDataParallel

from .._log import note

NAME = "replicas"  # in the tree, beside the names of the sources
_WORTH = 64 << 10  # bytes: what is smaller is kept by everybody


@dataclass(frozen=True)
class ReplicaSet:
    """Ranks that hold the same values: of the parameters in these storages, and of what their optimizers know of them."""

    rank: int
    world_size: int
    storages: frozenset[int]
    group: Any  # torch.distributed.ProcessGroup


@dataclass(frozen=True)
class Shares:
    """Numbers of the leaves that this rank keeps of what is replicated, the holders of the others, bytes of the common part."""

    mine: tuple[int, ...]
    held: Mapping[int, int]
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """For the tree."""
        return {"mine": list(self.mine), "held": [[n, r] for n, r in self.held.items()], "nbytes": self.nbytes}

    @staticmethod
    def from_json(node: Any) -> Shares:
        """Raises CorruptShard."""
        try:
            return Shares(tuple(map(int, node["mine"])), {int(n): int(r) for n, r in node["held"]}, int(node["nbytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptShard(f"bad list of shares: {error}") from error


def find(targets: Sequence[Any], rank: int, world_size: int) -> ReplicaSet | None:
    """The replica set of a job whose model is wrapped in DistributedDataParallel over all of its ranks, or None."""
    asked = os.environ.get("HOLDFAST_REPLICAS", "full").lower()
    if asked not in ("full", "shares"):
        note(f"HOLDFAST_REPLICAS={asked!r} is neither full nor shares: taking full")
    if asked != "shares" or world_size < 2:
        return None
    wrapped = [ddp for ddp in map(_ddp, targets) if ddp is not None]
    if len(wrapped) != 1 or torch.distributed.get_world_size(wrapped[0].process_group) != world_size:
        note("HOLDFAST_REPLICAS=shares needs one model in DistributedDataParallel over all ranks: each rank keeps full copies")
        return None
    ddp = wrapped[0]
    named = ((n, p) for n, p in ddp.module.named_parameters() if n not in ddp.parameters_to_ignore)
    storages = frozenset(p.untyped_storage().data_ptr() for _, p in named)
    return ReplicaSet(rank, world_size, storages, ddp.process_group)


def _ddp(target: Any) -> DistributedDataParallel | None:
    target = getattr(target, "_orig_mod", target)
    return target if isinstance(target, DistributedDataParallel) else None


def deal(sizes: Sequence[int], world_size: int) -> list[int]:
    """The holder of each leaf, -1 for everybody: the largest first, each to the rank that has least. The same on all ranks."""
    holders, loads = [-1] * len(sizes), [0] * world_size
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        if sizes[number] >= _WORTH:
            holders[number] = rank = loads.index(min(loads))
            loads[rank] += sizes[number]
    return holders


def by_number(entries: Sequence[Entry], shares: Shares) -> dict[int, Entry]:
    """A rank's entries by the numbers of their leaves; those that others hold are left out."""
    numbers = (n for n in range(len(entries) + len(shares.held)) if n not in shares.held)
    return dict(zip(numbers, entries, strict=True))
