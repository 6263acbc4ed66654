"""Decides, before a byte is copied, where each leaf of a snapshot goes: into a live tensor, or into new memory.

The encoded tree of a source and its live counterpart are walked side by side. Where a live tensor stands and fits, it is both
the destination of the bytes and the value that is handed out, so that nothing is copied twice and its address stays. What has
no live counterpart gets memory from torch, which is then handed over. What the one pass cannot write to (another device, gaps
between elements, memory that another leaf is written to as well) is copied in a second step, from verified bytes.

Everything that can be wrong with the snapshot's description, or with the live objects, is found here, while nothing has been
touched. Neighbours: `sources` knows what is alive, `transfer` makes the pass, `load` holds the parts together.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from holdfast_core.manifest import CorruptShard, Entry

from . import codec, shards
from .codec import BYTES, LAYOUT, Leaf
from .transfer import Move

_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


@dataclass(frozen=True, slots=True)
class Near:
    """In a live tree: what there is, if anything, and the parameter that something new belongs to (its device, its mesh)."""

    live: Any
    like: torch.Tensor


def match(node: Any, live: Any = None) -> list[tuple[dict[str, Any], Any]]:
    """All nodes of an encoded tree that refer to leaves, each with what stands at its place in `live` (or None)."""
    found: list[tuple[dict[str, Any], Any]] = []
    try:
        _match(node, live, found)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptShard(f"bad state tree: {type(error).__name__}: {error}") from error
    return found


def _match(node: Any, live: Any, found: list[tuple[dict[str, Any], Any]]) -> None:
    if isinstance(node, list):
        _match_items(enumerate(node), live, found)
    elif isinstance(node, dict):
        if codec.TAG not in node:
            _match_items(node.items(), live, found)
        elif "e" in node:
            found.append((node, live))
        elif isinstance(node.get("v"), list):
            pairs = node[codec.TAG] in codec.PAIRS
            _match_items(node["v"] if pairs else enumerate(node["v"]), live, found)
            _match(node.get("m"), None, found)


def _match_items(items: Iterable[Any], live: Any, found: list[tuple[dict[str, Any], Any]]) -> None:
    child = _child_of(live)
    for key, node in items:
        if type(node) is dict or type(node) is list:
            _match(node, child(key), found)


def _child_of(live: Any) -> Callable[[Any], Any]:
    if isinstance(live, Near):
        inner = _child_of(live.live)
        return lambda key: Near(inner(key), live.like)
    if isinstance(live, Mapping):
        return live.get
    if isinstance(live, list | tuple):
        return lambda index: live[index] if index < len(live) else None
    return lambda key: None


def entry_of(entries: tuple[Entry, ...], node: dict[str, Any]) -> Entry:
    """The entry that a node refers to; raises CorruptShard."""
    index = node.get("e")
    if type(index) is not int or not 0 <= index < len(entries):
        raise CorruptShard(f"bad state tree: leaf {index!r} of {len(entries)}")
    return entries[index]


class Placing:
    """The destinations of one restore. `bind` for each source, then `moves`, and after these are carried out `finish`.

    `areas` are the memory (uint8) that the offset of each entry counts from: the slot's data area, or what another rank has
    sent. `read` brings a byte string out of the slot.
    """

    def __init__(self, entries: tuple[Entry, ...], areas: Sequence[torch.Tensor], read: Callable[[Entry], bytearray]) -> None:
        self._entries = entries
        self._areas = areas
        self._read = read
        self._live: list[tuple[int, torch.Tensor]] = []  # (leaf, where a copy of it has to stand in the end)
        self._new: dict[tuple[int, str], torch.Tensor] = {}  # (leaf, device)
        self._later: list[tuple[int, torch.Tensor]] = []

    def bind(self, tree: Any, live: Any, *, follow: bool) -> dict[int, Leaf]:
        """What `codec.decode` has to hand out for the leaves of a source's tree. Tensors get their bytes later.

        `follow`: what lay on a device and has no live counterpart is brought back to this kind of device.
        Raises CorruptShard, and StateMismatch for shards that do not fit.
        """
        leaves: dict[int, Leaf] = {}
        for node, mine in match(tree, live):
            index, entry = node["e"], entry_of(self._entries, node)
            if entry.dtype == BYTES:
                leaves[index] = self._read(entry)
            else:
                leaf = self._tensor(node, index, mine, follow)
                leaves.setdefault(index, leaf)
        return leaves

    def _tensor(self, node: dict[str, Any], index: int, mine: Any, follow: bool) -> torch.Tensor:
        live, like = (mine.live, mine.like) if isinstance(mine, Near) else (mine, mine)
        layout = shards.Layout.from_json(node[LAYOUT]) if LAYOUT in node else None
        if isinstance(live, torch.Tensor) and self._fits(live, layout, self._entries[index]):
            self._live.append((index, shards.local_part(live)))
            return live
        like = like if isinstance(like, torch.Tensor) else None
        new = self._new_tensor(index, _device(node, like, follow), node.get(codec.STRIDE))
        return new if layout is None else shards.rebuild(new, layout, like)

    def _fits(self, live: torch.Tensor, layout: shards.Layout | None, entry: Entry) -> bool:
        if layout is not None or type(live) not in _PLAIN_TYPES:
            shards.check_layout(live, layout)
            live = shards.local_part(live)
        if live.dtype is not codec.dtype_of(entry.dtype) or tuple(live.shape) != entry.shape:
            return False
        if live.nbytes != entry.nbytes:
            _check_size(entry, live.dtype)
        return live.layout is torch.strided and not live.is_meta

    def _new_tensor(self, index: int, device: str, strides: Sequence[int] | None) -> torch.Tensor:
        """torch's own memory: some kernels give other last bits for another alignment."""
        known = self._new.get((index, device))
        if known is None:
            entry = self._entries[index]
            dtype = codec.dtype_of(entry.dtype)
            _check_size(entry, dtype)
            known = self._new[index, device] = _empty(entry, dtype, device, strides)
        return known

    def moves(self) -> list[Move]:
        """What the one pass has to do, in the order of the slot."""
        to: list[tuple[int, int | None]] = [(index, t.data_ptr()) for index, t in self._direct()]
        written = {index for index, _ in to}
        to += [(index, None) for index in {i for i, _ in self._later} - written]  # from the slot, once it is verified
        to.sort(key=itemgetter(0))
        moves: list[Move] = []
        area, base = None, 0
        for index, address in to:
            entry = self._entries[index]
            if self._areas[index] is not area:
                area = self._areas[index]
                base = area.data_ptr()
            if entry.nbytes:
                moves.append(Move(entry, base + entry.offset, address))
        return moves

    def _direct(self) -> list[tuple[int, torch.Tensor]]:
        """Live and new tensors that the pass can write to; the others go to `_later`."""
        able, self._later = [], []
        for order, (index, tensor) in enumerate(self._live):
            if tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
                able.append((tensor.data_ptr(), order, index, tensor))
            else:
                self._later.append((index, tensor))
        able.sort(key=itemgetter(0, 1))
        direct = self._without_overlaps(able)
        for (index, device), tensor in self._new.items():
            (direct if device == "cpu" and tensor.is_contiguous() else self._later).append((index, tensor))
        return direct

    def _without_overlaps(self, able: list[tuple[int, int, int, torch.Tensor]]) -> list[tuple[int, torch.Tensor]]:
        """Of memory that several leaves are to be written to, each byte once; the same leaf at the same place is one (ties)."""
        direct: list[tuple[int, torch.Tensor]] = []
        last, end, later = (-1, -1), 0, []
        for address, order, index, tensor in able:
            if (address, index) == last:
                continue
            if address < end:
                later.append((order, index, tensor))
                continue
            direct.append((index, tensor))
            last, end = (address, index), max(end, address + self._entries[index].nbytes)
        self._later += [(index, tensor) for _, index, tensor in sorted(later, key=itemgetter(0))]
        return direct

    def finish(self) -> None:
        """Copy what the pass could only verify; waits for devices once, at the end."""
        devices = set()
        with torch.no_grad():
            for index, tensor in self._later:
                if self._entries[index].nbytes:
                    live, saved = _written_once(tensor, self._verified(index))
                    live.copy_(saved, non_blocking=True)
                    devices.add(tensor.device)
        for device in devices:
            if device.type != "cpu":
                torch.get_device_module(device).synchronize(device)
        # The pass went past autograd, which counts changes; whoever compares these counts must see one.
        torch.autograd.graph.increment_version([t for _, t in self._live if not t.is_inference()])

    def _verified(self, index: int) -> torch.Tensor:
        """The leaf in the slot itself: it was verified a moment ago, and a slot that is being restored from is not written."""
        entry = self._entries[index]
        raw = self._areas[index][entry.offset : entry.offset + entry.nbytes]
        return raw.view(codec.dtype_of(entry.dtype)).view(entry.shape)


def _device(node: dict[str, Any], like: torch.Tensor | None, follow: bool) -> str:
    if "d" not in node:
        return "cpu"
    if like is not None:
        return str(like.device)
    return str(node["d"]) if follow else "cpu"


def _empty(entry: Entry, dtype: torch.dtype, device: str, strides: Sequence[int] | None) -> torch.Tensor:
    """Memory for an entry, in the order of `strides`; raises CorruptShard if these leave gaps."""
    if strides is None:
        return torch.empty(entry.shape, dtype=dtype, device=device)
    meta = torch.empty_strided(entry.shape, strides, device="meta")
    if list(torch.empty_like(meta).stride()) != list(strides):
        raise CorruptShard(f"{entry.key}: strides {strides} do not fit the shape {entry.shape}")
    return torch.empty_strided(entry.shape, strides, dtype=dtype, device=device)


def _check_size(entry: Entry, dtype: torch.dtype) -> None:
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.nbytes:
        raise CorruptShard(f"{entry.key}: {entry.nbytes} bytes do not make {entry.dtype} of shape {entry.shape}")


def _written_once(live: torch.Tensor, saved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both without the repetitions of an expanded tensor, whose elements share memory: torch refuses to copy into one."""
    for dim, (size, stride) in enumerate(zip(live.shape, live.stride(), strict=True)):
        if stride == 0 and size > 1:
            live, saved = live.narrow(dim, 0, 1), saved.narrow(dim, 0, 1)
    return live, saved


def address_of(buffer: bytearray) -> int:
    """Where a buffer's bytes are; it must not be resized meanwhile."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
