"""A pod's RAM, which outlives its sidecar and its processes: slots, the steps that are kept, parity in two buffers a rank."""

from __future__ import annotations

from holdfast_core.messages import Parity
from holdfast_core.timeline import Copy, History, is_valid
from holdfast_sidecar.group.keeping import Kept

from . import rules
from .world import SEALED, WRITING, Buffer, Pod, Slot


def find(pod: Pod, copy: Copy) -> int | None:
    """The slot that holds a copy."""
    return next((i for i, s in enumerate(pod.slots) if s.state == SEALED and s.copy == copy), None)


def put(pod: Pod, index: int, slot: Slot) -> Pod:
    """A slot's new content. Slots are alike: they are kept in order, so that states that differ in nothing else are one."""
    slots = (*pod.slots[:index], slot, *pod.slots[index + 1 :])
    return pod._replace(slots=tuple(sorted(slots)))


def clear(pod: Pod, copy: Copy) -> Pod:
    """Forget a snapshot."""
    index = find(pod, copy)
    return pod if index is None else put(pod, index, Slot())


def tear(pod: Pod) -> Pod | None:
    """A process dies while it writes."""
    index = rules.free_slot(pod, pod.committed)
    return None if index is None else put(pod, index, Slot(WRITING))


def corrupt(pod: Pod, index: int) -> Pod:
    """A bit of a snapshot flips."""
    return put(pod, index, pod.slots[index]._replace(good=False))


def clear_void(pod: Pod, history: History) -> Pod:
    """`Arenas.clear_void`."""
    slots = (Slot() if s.state == SEALED and not is_valid(s.copy, history) else s for s in pod.slots)
    return pod._replace(slots=tuple(sorted(slots)))


def has_newest(pod: Pod) -> bool:
    """Whether it still holds the step that it was told to be committed."""
    return pod.told is not None and find(pod, pod.told) is not None


# --- parity


def whole(pod: Pod) -> frozenset[Copy]:
    """`Replicator._whole`."""
    return frozenset(b.parity.copy for b in rules.buffers(pod))


def keep(pod: Pod, kept: Kept) -> Pod:
    """`Replicator._keep`: parity of what is not kept is of no use."""
    first, second = (b if b is None or b.parity.copy in kept.copies else None for b in pod.parity)
    return pod._replace(kept=kept, parity=(first, second))


def has(pod: Pod, kind: Parity) -> bool:
    """Whether this very parity is whole here."""
    return any(b.parity == kind for b in rules.buffers(pod))


def buffer_for(pod: Pod, copy: Copy) -> int | None:
    """`ParityStore._free`: a buffer of no kept copy; else one of the same copy, if the other one holds a kept copy too."""
    held = [b.parity.copy if b is not None else None for b in pod.parity]
    free = [n for n in (0, 1) if held[n] not in pod.kept.copies]
    free = free or [n for n in (0, 1) if held[n] == copy and held[1 - n] in pod.kept.copies]
    return max(free, key=lambda n: (held[n] == copy, -n)) if free else None


def set_buffer(pod: Pod, number: int, buffer: Buffer | None) -> Pod:
    """A buffer's new content."""
    return pod._replace(parity=(buffer, pod.parity[1]) if number == 0 else (pod.parity[0], buffer))


def only(pod: Pod, kind: Parity) -> Pod:
    """`Replicator._drop_other_groups`: what was protected anew in other groups is not needed twice."""
    if not has(pod, kind):
        return pod
    others = (b if b is None or b.parity.copy != kind.copy or b.parity == kind else None for b in pod.parity)
    first, second = others
    return pod._replace(parity=(first, second))


def damage(pod: Pod, number: int) -> Pod:
    """A bit of parity flips."""
    return set_buffer(pod, number, rules.buffer(pod, number)._replace(good=False))


def drop(pod: Pod, kind: Parity) -> Pod:
    """Forget parity that turned out to be corrupt."""
    first, second = (None if b is not None and b.parity == kind else b for b in pod.parity)
    return pod._replace(parity=(first, second))
