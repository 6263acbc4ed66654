"""Where each tensor of the state goes, and which fence guards it; kept from step to step while only values change.

A plan holds a reference to the memory of every tensor that it copies, so that an address that it has noted cannot become
another tensor's. In each step it compares objects and addresses with what it noted, and is thrown away at the first difference.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from holdfast_core import arena, manifest
from holdfast_core.arena import align
from holdfast_core.manifest import Entry
from torch.optim import Optimizer

from .._state.codec import Encoder, Leaf, LeafSpec
from .._state.replicas import NAME as REPLICAS
from .._state.replicas import ReplicaSet, Shares, deal
from .._state.sources import Source
from .device import DeviceLane
from .lane import Item, Lane
from .views import AnyView, ModuleView, View, dumps, local, same_objects, view
from .whereabouts import Whereabouts

Lanes = tuple[dict[int, Lane], dict[int, DeviceLane]]
EAGER, FROZEN = -1, -2  # fences: none (copied before snapshot() returns), nothing changes it; from 0: that optimizer's step
_MANIFEST_SLACK = 64 << 10  # bytes: numbers in the tree get longer as training goes on


class Late(Encoder):
    """Encodes what changes, beside the leaves that a plan has already."""

    def __init__(self, base: Encoder) -> None:
        super().__init__()
        self._base = base
        self._first = len(base.leaves)

    def _alias(self, value: torch.Tensor) -> int | None:
        known = self._base._alias(value)
        return known if known is not None else super()._alias(value)

    def _leaf(self, value: Leaf, key: str, *spec: Any, **more: Any) -> int:
        while key in self._base._keys:
            key += "'"
        return self._first + super()._leaf(value, key, *spec, **more)


@dataclass
class Plan:
    """`lanes` and `device_lanes` by fence. `sums` has a checksum for each chunk of the fixed entries, in their order."""

    views: dict[str, View]
    fixed: dict[str, Any]
    encoder: Encoder
    live: list[torch.Tensor]
    entries: tuple[Entry, ...]
    described: bytes
    sums: array[int]
    lanes: dict[int, Lane]
    device_lanes: dict[int, DeviceLane]
    data_bytes: int
    optimizers: list[Optimizer]
    fences: Fences
    shared: bytes | None = None  # who holds what, as JSON, if the ranks of a replica set share the work
    reserved: int = 0  # slot bytes asked for

    def __post_init__(self) -> None:
        """Each tensor once: a parameter is in its module and its optimizer."""
        modules = {id(t): t for v in self.views.values() if isinstance(v, ModuleView) for t in v.live()}
        others = {id(t): t for t in self.live if id(t) not in modules}
        self._where = Whereabouts([*modules.values()], [*others.values()])

    def holds(self) -> bool:
        """Whether the state still consists of the same tensors in the same memory."""
        now = [t for v in self.views.values() for t in v.live()]
        return same_objects(now, self.live) and self._where.same()

    def fences_of(self, optimizer: Optimizer) -> list[int]:
        """The fences that a step of this optimizer needs: its own, or, for one that nobody gave us, those of its parameters."""
        for number, own in enumerate(self.optimizers):
            if own is optimizer:
                return [number]
        return sorted({self.fences.of(p) for group in optimizer.param_groups for p in group["params"]} - {EAGER, FROZEN})

    def tree(self, late: Encoder, changing: Mapping[str, Callable[[], Any]]) -> list[bytes]:
        """The whole state as JSON, in parts to be joined. `changing` gives values that are encoded beside the sources, and
        after them: a source may draw random numbers when it is asked for its state."""
        parts = [b"{"]
        for name, v in self.views.items():
            parts += [dumps(name), b":", *v.tree(self.fixed[name], late, name), b","]
        for name, value in changing.items():
            parts += [dumps(name), b":", dumps(late.encode(value(), name)), b","]
        if self.shared is not None:
            parts += [dumps(REPLICAS), b":", self.shared, b","]
        return [*parts[:-1], b"}"]

    def slot_bytes(self, data_bytes: int, manifest_bytes: int) -> int:
        """What a slot must have; asked for with room to spare, so that it is seldom asked for again."""
        if arena.slot_bytes_for(data_bytes, manifest_bytes) > self.reserved:
            self.reserved = arena.slot_bytes_for(data_bytes, manifest_bytes + manifest_bytes // 4 + _MANIFEST_SLACK)
        return self.reserved


def make(sources: Mapping[str, Source], untrusted: Iterable[int] = (), replicas: ReplicaSet | None = None) -> Plan:
    """A plan for the state as it is. `untrusted`: storages that somebody changes without a fence."""
    views: dict[str, View] = {name: view(source) for name, source in sources.items()}
    for name, source in sources.items():
        if any(t.is_conj() or t.is_neg() or t.is_inference() for t in views[name].live()):
            views[name] = AnyView(source)  # its bytes are not its values, or nobody counts its changes
    encoder = Encoder()
    fixed = {name: v.fixed(encoder, name) for name, v in views.items()}
    optimizers = [v.optimizer for v in views.values() if v.optimizer is not None]
    fences = Fences(views, optimizers, frozenset(untrusted))
    shares = _deal(encoder, optimizers, replicas) if replicas is not None else None
    kept = [n for n in range(len(encoder.leaves)) if shares is None or n not in shares.held]
    entries = place([encoder.specs[n] for n in kept], 0)
    sums = array("I", bytes(4 * sum(manifest.chunk_count(e.nbytes) for e in entries)))
    host, device = lanes([encoder.leaves[n] for n in kept], entries, fences.of, sums)
    live = [t for v in views.values() for t in v.live()]
    shared = None if shares is None else dumps(replace(shares, nbytes=end_of(entries)).to_json())
    return Plan(views, fixed, encoder, live, entries, manifest.describe(entries), sums, host, device, end_of(entries),
                optimizers, fences, shared)  # fmt: skip


def _deal(encoder: Encoder, optimizers: Sequence[Optimizer], replicas: ReplicaSet) -> Shares:
    """Which of the leaves that all ranks hold alike this one keeps, and who the others."""
    alike = set(replicas.storages)
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if isinstance(parameter, torch.Tensor) and storage(parameter) in replicas.storages:
                alike.update(storage(t) for t in state.values())
    tensors = [leaf for leaf in encoder.leaves if isinstance(leaf, torch.Tensor)]
    sizes = [spec.nbytes if storage(t) in alike else 0 for t, spec in zip(tensors, encoder.specs, strict=True)]
    holders = deal(sizes, replicas.world_size)
    mine = tuple(n for n, holder in enumerate(holders) if holder == replicas.rank)
    return Shares(mine, {n: h for n, h in enumerate(holders) if h not in (-1, replicas.rank)}, 0)


def place(specs: Sequence[LeafSpec], start: int) -> tuple[Entry, ...]:
    """Entries for leaves, each aligned, from offset `start` on."""
    whole = [(s, s.global_shape or s.shape, s.global_offset or (0,) * len(s.shape)) for s in specs]
    bare = [Entry(s.key, s.dtype, s.shape, 0, s.nbytes, (), s.placement, shape, offset) for s, shape, offset in whole]
    shift = align(start)
    return tuple(replace(e, offset=e.offset + shift) for e in manifest.lay_out(bare))


def end_of(entries: Sequence[Entry]) -> int:
    """Bytes up to the end of the last entry."""
    return max((e.offset + e.nbytes for e in entries), default=0)


def lanes(leaves: Sequence[Leaf], entries: Sequence[Entry], fence_of: Callable[[torch.Tensor], int], sums: array[int]) -> Lanes:
    """The copies by fence, for tensors in host memory and for those on devices."""
    host: dict[int, list[Item]] = {}
    device: dict[int, list[Item]] = {}
    at = 0
    for leaf, entry in zip(leaves, entries, strict=True):
        tensor = leaf if isinstance(leaf, torch.Tensor) else _as_tensor(leaf)
        (host if tensor.is_cpu else device).setdefault(fence_of(tensor), []).append(Item(tensor, entry, at))
        at += manifest.chunk_count(entry.nbytes)
    in_order = {f: Lane(host[f], sums) for f in sorted(host)}  # those without a fence first: they are needed first
    return in_order, {f: DeviceLane(i, sums) for f, i in device.items()}


def _as_tensor(leaf: bytes | bytearray) -> torch.Tensor:
    return torch.frombuffer(bytearray(leaf), dtype=torch.uint8) if leaf else torch.empty(0, dtype=torch.uint8)


class Fences:
    """Which fence guards a tensor, told by the memory that it lies in."""

    def __init__(self, views: Mapping[str, View], optimizers: Sequence[Optimizer], untrusted: frozenset[int]) -> None:
        self._owners: dict[int, set[int]] = {}
        self._frozen: set[int] = set()
        self._untrusted = set(untrusted)
        for number, optimizer in enumerate(optimizers):
            fence = number if is_fenced(optimizer) else EAGER
            for tensor in (t for v in views.values() if v.optimizer is optimizer for t in v.live()):
                self._owners.setdefault(storage(tensor), set()).add(fence)
        held = {storage(t) for o in optimizers for s in o.state.values() for t in s.values()}
        stateful = {storage(p) for o in optimizers for p in o.state if isinstance(p, torch.Tensor)}
        for module in (v.module for v in views.values() if isinstance(v, ModuleView)):
            self._untrusted.update(storage(t) for t in _changed_in_forward(module))
            self._frozen.update(storage(p) for p in module.parameters() if not p.requires_grad)
            self._frozen.difference_update(storage(p) for p in module.parameters() if p.requires_grad)
            self._frozen.difference_update(storage(b) for b in module.buffers())
        self._frozen -= held | stateful | self._untrusted

    def of(self, leaf: torch.Tensor) -> int:
        where = storage(leaf)
        if where in self._frozen:
            return FROZEN
        owners = self._owners.get(where, set())
        return next(iter(owners)) if len(owners) == 1 and where not in self._untrusted else EAGER


def storage(tensor: torch.Tensor) -> int:
    """Address of the memory that a tensor is a view of."""
    return local(tensor).untyped_storage().data_ptr()


def is_fenced(optimizer: Optimizer) -> bool:
    """Whether its step calls the hooks of torch; one that does not inherit properly changes tensors unannounced."""
    return bool(getattr(type(optimizer).step, "hooked", False))


def _changed_in_forward(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    """Parameters that forward changes in place: embeddings that renormalise the rows they look up."""
    for m in module.modules():
        if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag) and m.max_norm is not None:
            yield m.weight
