"""The ranks of a replica set send each other the parts of a snapshot that only one of them has kept.

First everybody tells what it has: numbers, places, checksums. Then each rank in turn broadcasts the common part of its slot.
What arrives is not believed: its checksums are the holder's, and the pass that copies it to where it belongs compares them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from holdfast_core.manifest import CorruptShard, Entry

from .replicas import Shares, by_number

_PIECE = 64 << 20  # bytes in one broadcast


@dataclass(frozen=True)
class Gathered:
    """All leaves by number, and where their bytes are: in the own slot, or in what another rank has sent."""

    entries: tuple[Entry, ...]
    areas: tuple[torch.Tensor, ...]


def gather(own: tuple[Entry, ...], area: torch.Tensor, shares: Shares, group: Any) -> Gathered:
    """Called by all ranks of the group at the same time. Raises CorruptShard if their parts do not make a whole."""
    mine = by_number(own, shares)
    told = _tell({"entries": {n: _plain(mine[n]) for n in shares.mine}, "nbytes": shares.nbytes}, group)
    received = [_broadcast(area, rank, int(what["nbytes"]), group) for rank, what in enumerate(told)]
    entries, areas = [], []
    for number in range(len(own) + len(shares.held)):
        holder = shares.held.get(number)
        if holder is None:
            entries.append(mine[number])
            areas.append(area)
        else:
            entries.append(_entry(told, holder, number))
            areas.append(received[holder])
    return Gathered(tuple(entries), tuple(areas))


def _entry(told: list[dict[str, Any]], holder: int, number: int) -> Entry:
    try:
        node = told[holder]["entries"][str(number)]
        entry = Entry(**{**node, "shape": tuple(node["shape"]), "checksums": tuple(node["checksums"])})
    except (KeyError, IndexError, TypeError) as error:
        raise CorruptShard(f"rank {holder} does not have leaf {number}, which is its share: {error}") from error
    if entry.offset < 0 or entry.nbytes < 0 or entry.offset + entry.nbytes > int(told[holder]["nbytes"]):
        raise CorruptShard(f"{entry.key}: lies outside of what rank {holder} has sent")
    return replace(entry, global_shape=entry.shape, global_offset=(0,) * len(entry.shape))


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key, "dtype": entry.dtype, "shape": entry.shape, "offset": entry.offset, "nbytes": entry.nbytes,
        "checksums": entry.checksums,
    }  # fmt: skip


def _device(group: Any) -> torch.device:
    """Where the group's collectives work: NCCL moves nothing that lies in host memory."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")


def _tell(document: dict[str, Any], group: Any) -> list[dict[str, Any]]:
    """Every rank's document, as JSON: nothing that comes over the network is unpickled."""
    device, world = _device(group), dist.get_world_size(group)
    raw = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([raw.numel()], dtype=torch.int64, device=device), group=group)
    longest = max(int(s) for s in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: raw.numel()] = raw
    all_raw = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(all_raw, padded, group=group)
    return [json.loads(bytes(r[: int(s)].cpu().tolist())) for r, s in zip(all_raw, sizes, strict=True)]


def _broadcast(area: torch.Tensor, holder: int, nbytes: int, group: Any) -> torch.Tensor:
    """The first `nbytes` of the holder's slot, in host memory."""
    device, me = _device(group), dist.get_rank(group)
    part = area[:nbytes] if holder == me else torch.empty(nbytes, dtype=torch.uint8)
    source = dist.get_global_rank(group, holder)
    for at in range(0, nbytes, _PIECE):
        piece = part[at : at + _PIECE]
        moved = piece.to(device)
        dist.broadcast(moved, source, group=group)
        if holder != me and device.type != "cpu":
            piece.copy_(moved)
    return part
