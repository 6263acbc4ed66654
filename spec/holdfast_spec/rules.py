"""Calls of the real rules, in the model's values. What is decided is decided there, so that a wrong rule is wrong here too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast_core import arena, protection, recovery
from holdfast_core.arena import ArenaError, ArenaHeader, SlotState
from holdfast_core.erasure.layout import ALIGN, Layout
from holdfast_core.messages import Inventory, Parity
from holdfast_core.protection import Holdings
from holdfast_core.timeline import Copy, History

from .world import SEALED, Buffer, Pod, Slot

_HEADER = ArenaHeader("job", 0, 1, 1, arena.PAGE)
_ARENA = memoryview(bytearray(_HEADER.total_bytes))
arena.format_arena(_ARENA, _HEADER, 0)


def may_write(fence: int, writer: int) -> bool:
    """Whether an attempt may seal a slot of an arena fenced for another: tried on a real one."""
    arena.set_fence(_ARENA, fence)
    try:
        arena.seal(_ARENA, _HEADER, 0, step=0, attempt=writer, data_bytes=0, manifest=b"")
    except ArenaError:
        return False
    return True


def free_slot(pod: Pod, committed: int) -> int | None:
    """The slot that this pod may overwrite."""
    kept = {c.step for c in pod.kept.copies}
    slots = [_slot(i, s, pod.upload) for i, s in enumerate(pod.slots)]
    return arena.choose_slot(slots, committed, 0, pod.floor, kept)


def _slot(index: int, slot: Slot, leased: Copy | None) -> arena.Slot:
    until = 1 if slot.state == SEALED and slot.copy == leased else 0
    return arena.Slot(index, SlotState(slot.state), slot.step, slot.attempt, lease_until=until)


def decodable(kind: Parity, lost: int, data: Iterable[int], parity: Iterable[int]) -> bool:
    """Whether a rank can be computed from these ranks' snapshots and these ranks' parity."""
    place = {rank: i for i, rank in enumerate(kind.group)}
    layout = Layout(len(kind.group), kind.parity, ALIGN)
    return layout.decodable([place[r] for r in data if r in place], [place[r] for r in parity if r in place], [place[lost]])


def restorable(held: Holdings, inventory: Inventory | None, world_size: int, history: History) -> Copy | None:
    """The freshest copy that every rank can have."""
    found = recovery.choose(held, inventory, world_size, history)
    return Copy(found.source.step, found.source.attempt) if found else None


def faults(held: Holdings, copy: Copy, world_size: int, domains: Mapping[int, str]) -> int:
    """How many nodes may be lost without losing this copy."""
    return protection.faults(held, copy, {r: r for r in range(world_size)}, domains)


def really_valid(copy: Copy, history: History) -> bool:
    """The rule of `timeline`, said once more for the invariants: they must not err with it."""
    return all(r.attempt <= copy.attempt or r.step >= copy.step for r in history)


def copies(pod: Pod) -> frozenset[Copy]:
    """Snapshots that the sidecar offers: it does not know yet which ones are corrupt."""
    return frozenset(s.copy for s in pod.slots if s.state == SEALED)


def good_copies(pod: Pod) -> frozenset[Copy]:
    """Those whose bytes are right."""
    return frozenset(s.copy for s in pod.slots if s.state == SEALED and s.good)


def buffers(pod: Pod) -> tuple[Buffer, ...]:
    """Its whole parities."""
    return tuple(b for b in pod.parity if b is not None)


def by_copy(kind: Parity) -> tuple[Copy, tuple[int, ...], int]:
    """An order among parities."""
    return kind.copy, kind.group, kind.parity


def buffer(pod: Pod, number: int) -> Buffer:
    """One of its two; there must be parity in it."""
    found = pod.parity[number]
    assert found is not None
    return found


def freeze(value: Any, objects: tuple[type, ...] = ()) -> Any:
    """Containers, and objects of these classes, as values that can be hashed and compared."""
    if isinstance(value, objects):
        return ("object", type(value), tuple((k, freeze(v, objects)) for k, v in sorted(vars(value).items())))
    if isinstance(value, Mapping):
        return ("dict", tuple((k, freeze(value[k], objects)) for k in sorted(value)))
    if isinstance(value, set):
        return ("set", frozenset(value))
    if isinstance(value, list):
        return ("list", tuple(freeze(v, objects) for v in value))
    return value


def thaw(value: Any) -> Any:
    """The contrary of `freeze`."""
    if not isinstance(value, tuple) or not value:
        return value
    kind = value[0]
    if kind == "object":
        made = object.__new__(value[1])
        made.__dict__.update((k, thaw(v)) for k, v in value[2])
        return made
    if kind == "dict":
        return {k: thaw(v) for k, v in value[1]}
    if kind == "set":
        return set(value[1])
    if kind == "list":
        return [thaw(v) for v in value[1]]
    return value
