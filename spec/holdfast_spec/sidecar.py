"""What a pod does by itself, or when it is told something: a short mirror of the sidecar's effects around the real decisions.

Each function says which method it mirrors. `peers` stands for the servers of the other pods, as they are at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from holdfast_core.arena import NO_STEP
from holdfast_core.durable import Shard
from holdfast_core.messages import MEMORY, PEERS, TOLD, Order, Parity, Reached, Source
from holdfast_core.protection import rank_groups
from holdfast_core.timeline import Copy
from holdfast_sidecar.group.keeping import Kept, ordered, prepared

from . import memory, rules
from .world import ALONE, EMPTY, LINKED, SEALED, Buffer, Pod, Prepare, Slot, Task

_MEMBER = ("prepared", "running", "stopping", "exited")  # phases in which the pod belongs to the group


def copy_of(source: Source) -> Copy:
    """The copy that a source stands for."""
    return Copy(source.step, source.attempt)


def say(pod: Pod, word: Reached) -> Pod:
    """`Member.report`: lost if there is no connection; `everything` says it then."""
    return pod._replace(up=(*pod.up, word)) if pod.link == LINKED else pod


def belongs(pod: Pod) -> bool:
    """Whether its member keeps up a connection."""
    return pod.phase in _MEMBER


# --- the trainer


def seal(pod: Pod, skips: bool) -> tuple[Pod, str]:
    """A process publishes its next snapshot: the pod after it, and sealed, fenced, full (it waits) or skipped."""
    step = pod.done + 1
    if not rules.may_write(pod.attempt, pod.writer):
        return pod, "fenced"
    if step < pod.floor:
        return pod._replace(done=step), "skipped"
    index = rules.free_slot(pod, pod.committed)
    if index is None:
        return _skip(pod, step) if skips else (pod, "full")
    copy = Copy(step, pod.writer)
    sealed = memory.put(pod._replace(done=step), index, Slot(SEALED, step, pod.writer))
    known = pod.writer == pod.attempt  # `Trainers.notice` refuses words of other attempts
    return (say(sealed, Reached(pod.attempt, MEMORY, pod.index, copy)) if known else sealed), "sealed"


def _skip(pod: Pod, step: int) -> tuple[Pod, str]:
    word = Reached(pod.attempt, MEMORY, pod.index, Copy(step, pod.attempt), error="no free slot")
    return say(pod._replace(done=step), word), "skipped"


# --- commands of the operator


def command(pod: Pod, kind: str, attempt: int) -> Pod:
    """`Lifecycle.obey`, but for `prepare`."""
    if kind == "stop" and attempt >= pod.attempt and attempt >= pod.writer and pod.process == "up":
        return ended(pod._replace(process="dead"))
    if kind == "launch" and attempt == pod.attempt and pod.phase == "prepared":
        return _launch(pod)
    return pod


def ended(pod: Pod) -> Pod:
    """`Lifecycle.processes_changed`."""
    return pod._replace(phase="exited") if pod.phase == "running" else pod


def _launch(pod: Pod) -> Pod:
    """The process restores from its slot, which it checks itself; without one (`Trainers._attach`) it ends."""
    assert pod.prepare is not None
    source = pod.prepare.source
    step = source.step if source else NO_STEP
    pod = pod._replace(phase="running", process="up", writer=pod.attempt, done=step, exchanged=step)
    index = memory.find(pod, copy_of(source)) if source else None
    if source is None or (index is not None and pod.slots[index].good):
        return pod
    return ended(pod._replace(process="dead" if index is None else "corrupt"))


def prepare(pod: Pod, order: Prepare) -> Pod:
    """`Lifecycle._prepare`, and the fence: the first thing that `Preparation.run` does."""
    source = order.source
    told = copy_of(source) if source and source.level == MEMORY else None
    return pod._replace(
        attempt=order.attempt, phase="preparing", ready=False, prepare=order, rejected=None, passing=False, floor=NO_STEP,
        told=told, task=None, upload=None, uploaded=None, link=ALONE, up=(), down=(),
    )  # fmt: skip


def stopped(pod: Pod) -> Pod:
    """`Preparation.run` once the old processes are dead, up to `_load`. What needs nobody else is loaded at once."""
    order = pod.prepare
    assert order is not None
    pod = pod._replace(process="none")
    if order.source is not None and order.source.level == MEMORY and memory.find(pod, copy_of(order.source)) is None:
        return reject(pod, order.source)
    pod = memory.clear_void(pod, order.history)
    pod = load_own(memory.keep(pod, prepared(pod.kept, order.source, order.history)))
    return pod._replace(ready=pod.phase == "preparing")


def reject(pod: Pod, source: Source, *, passing: bool = False) -> Pod:
    """`PrepareFailed`."""
    return pod._replace(phase="failed", ready=False, rejected=replace(source, rank=pod.index), passing=passing)


def asks_peers(pod: Pod) -> bool:
    """Whether it is bringing its rank back from them."""
    return pod.ready and pod.prepare is not None and pod.prepare.source is not None and level_of(pod) == PEERS


def out_of_reach(pod: Pod) -> Pod:
    """`Rebuilder.run` has waited for them long enough."""
    assert pod.prepare is not None
    assert pod.prepare.source is not None
    return reject(pod, replace(pod.prepare.source, level=PEERS), passing=True)


def level_of(pod: Pod) -> str:
    """`Preparation._level`."""
    assert pod.prepare is not None
    assert pod.prepare.source is not None
    levels = dict(pod.prepare.levels)
    return levels.get(pod.index, MEMORY if levels else pod.prepare.source.level)


def load_own(pod: Pod) -> Pod:
    """`Preparation._load_rank` as far as it looks into its own memory; if that does not help it goes on waiting."""
    assert pod.prepare is not None
    source = pod.prepare.source
    if source is None:
        return pod._replace(phase="prepared", committed=NO_STEP)
    copy, level = copy_of(source), level_of(pod)
    index = memory.find(pod, copy)
    if index is not None and pod.slots[index].good:
        return pod._replace(phase="prepared", committed=source.step)
    if index is not None:
        pod = memory.clear(pod, copy)
    return reject(pod, replace(source, level=level)) if level == MEMORY else pod


def load(pod: Pod, stored: bool | None, peers: Mapping[int, Pod]) -> tuple[Pod, dict[int, Pod]]:
    """The rest of it, from a store (`stored`: its copy is good, corrupt, or None: not there) or from peers; and these then."""
    assert pod.prepare is not None
    assert pod.prepare.source is not None
    source, level = pod.prepare.source, level_of(pod)
    copy, after = copy_of(source), dict(peers)
    possible = bool(stored) if level != PEERS else _rebuild(pod.index, copy, after)
    index = rules.free_slot(pod, copy.step) if possible else None
    if index is None or not rules.may_write(pod.attempt, pod.attempt):
        passing = not possible and level == PEERS and len(after) < len(pod.prepare.members) - 1  # who is silent may have it
        return reject(pod, replace(source, level=level), passing=passing), after
    pod = memory.put(pod, index, Slot(SEALED, copy.step, copy.attempt))
    return pod._replace(phase="prepared", ready=False, committed=source.step), after


def _rebuild(rank: int, copy: Copy, peers: dict[int, Pod]) -> bool:
    """`Rebuilder.run`: corrupt sources are found out, forgotten where they lie, and done without."""
    kinds = {b.parity for p in peers.values() for b in rules.buffers(p) if b.parity.copy == copy and rank in b.parity.group}
    for kind in sorted(kinds, key=lambda k: (-sum(memory.has(p, k) for p in peers.values()), rules.by_copy(k))):
        for index in kind.group:
            if index in peers:
                peers[index] = _served(peers[index], copy, kind)
        data = [i for i, p in peers.items() if copy in rules.copies(p)]
        parity = [i for i, p in peers.items() if memory.has(p, kind)]
        if rules.decodable(kind, rank, data, parity):
            return True
    return False


def _served(pod: Pod, copy: Copy, kind: Parity) -> Pod:
    """`peers.holdings`: what is sent is checked first, and forgotten if it is wrong."""
    index = memory.find(pod, copy)
    if index is not None and not pod.slots[index].good:
        pod = memory.clear(pod, copy)
    return memory.drop(pod, kind) if Buffer(kind, good=False) in pod.parity else pod


# --- orders of the coordinator


def obey(pod: Pod, order: Order) -> Pod:
    """`Lifecycle.ordered`."""
    if order.attempt != pod.attempt:
        return pod
    if order.level == PEERS:
        return _obey_peers(pod, order)
    if order.kind == "persist":
        return _persist(pod, order.copy)
    if order.kind == "committed" and order.level == MEMORY:
        return pod._replace(committed=order.copy.step, told=order.copy)
    if order.kind == "committed":
        return pod._replace(stored=order.copy)
    return pod._replace(floor=order.copy.step) if order.kind == "resync" else pod


def _obey_peers(pod: Pod, order: Order) -> Pod:
    """`Replicator.obey`."""
    if pod.task is not None and pod.task.order == order:
        return pod
    if order.kind in ("replicate", "release"):
        pod = pod._replace(task=None)
    pod = memory.keep(pod, ordered(pod.kept, order, pod.index, memory.whole(pod)))
    kind = wanted(pod, order)
    if kind is None or order.kind not in ("replicate", "committed"):
        return pod
    return pod._replace(task=Task(order)) if order.kind == "replicate" else memory.only(pod, kind)


def wanted(pod: Pod, order: Order) -> Parity | None:
    """The parity that an order asks of a pod."""
    assert pod.prepare is not None
    found = rank_groups(order.groups, pod.prepare.members).get(pod.index)
    return Parity(order.copy, *found) if found else None


def begin(pod: Pod) -> Pod | None:
    """`Encoder.run` up to `ParityStore.begin`: a buffer is cleared. None if there is nothing to clear."""
    assert pod.task is not None
    kind = wanted(pod, pod.task.order)
    assert kind is not None
    number = memory.buffer_for(pod, kind.copy)
    if memory.has(pod, kind) or number is None or pod.parity[number] is None:
        return None
    return memory.set_buffer(pod._replace(task=pod.task._replace(begun=True)), number, None)


def encode(pod: Pod, peers: Mapping[int, Pod]) -> tuple[Pod, dict[int, Pod]]:
    """`Replicator._encode`: parity is whole, or the trouble is told. `peers` are those that answer, in the same attempt."""
    assert pod.task is not None
    order, after = pod.task.order, dict(peers)
    kind = wanted(pod, order)
    assert kind is not None
    pod = pod._replace(task=None)
    word = Reached(order.attempt, PEERS, pod.index, order.copy, group=kind.group, parity=kind.parity, round=order.round)
    blame = -1 if memory.has(pod, kind) else _source_to_blame(pod, kind, after)
    number = memory.buffer_for(pod, kind.copy)
    if blame < 0 and not memory.has(pod, kind):
        if number is None:
            blame = pod.index
        else:
            pod = memory.set_buffer(pod, number, Buffer(kind))
    return say(pod, word if blame < 0 else replace(word, error="no parity", blame=blame)), after


def _source_to_blame(pod: Pod, kind: Parity, peers: dict[int, Pod]) -> int:
    if memory.find(pod, kind.copy) is None:
        return pod.index
    for index in (i for i in kind.group if i != pod.index):
        if index not in peers or memory.find(peers[index], kind.copy) is None:
            return index
        served = _served(peers[index], kind.copy, kind)
        if memory.find(served, kind.copy) is None:
            peers[index] = served
            return index
    return -1


def _persist(pod: Pod, copy: Copy) -> Pod:
    """`Uploads.start`."""
    if pod.upload == copy:
        return pod
    if pod.uploaded is not None and pod.uploaded.copy == copy and not pod.uploaded.error:
        return say(pod, pod.uploaded)
    return pod._replace(upload=copy, uploaded=None)


def upload(pod: Pod, store: str) -> Pod:
    """`Uploads._upload`."""
    copy = pod.upload
    assert copy is not None
    index = memory.find(pod, copy)
    good = index is not None and pod.slots[index].good
    if index is not None and not good:
        pod = memory.clear(pod, copy)
    shard = Shard(pod.index, str(pod.index), 1, 0, ()) if good else None
    word = Reached(pod.attempt, store, pod.index, copy, shard, "" if good else "in memory: gone")
    return say(pod._replace(upload=None, uploaded=word), word)


# --- connections, and restarts


def everything(pod: Pod) -> tuple[Reached, ...]:
    """`Lifecycle._everything`: newest first, and `told` in the end."""
    lasting = sorted((c for c in rules.copies(pod) if not pod.committed < c.step < pod.floor), reverse=True)
    words = [Reached(pod.attempt, MEMORY, pod.index, c) for c in lasting]
    words += [pod.uploaded] if pod.uploaded else []
    held = [b.parity for b in rules.buffers(pod)]
    words += [Reached(pod.attempt, PEERS, pod.index, p.copy, group=p.group, parity=p.parity) for p in held]
    return (*words, Reached(pod.attempt, TOLD, pod.index, Copy(-1, pod.attempt)))


def restarted(pod: Pod) -> Pod:
    """The sidecar's container dies and comes back: `Lifecycle.resume` and `Replicator.resume`."""
    by_step = {c.step: c for c in sorted(rules.copies(pod))}
    protected, pending = (by_step.get(c.step) if c is not None else None for c in (pod.kept.protected, pod.kept.pending))
    at_word = max((c for c in rules.copies(pod) if c.step == pod.committed), default=None)
    told = (at_word or pod.told) if pod.prepare is not None else pod.told
    pod = pod._replace(kept=Kept(protected, pending), told=told, task=None, upload=None, uploaded=None, stored=None)
    return pod._replace(link=ALONE, up=(), down=(), ready=False)


def born(index: int, incarnation: int, node: str, slots: int) -> Pod:
    """A new pod, with nothing in its RAM."""
    return Pod(index, incarnation, node, slots=(Slot(EMPTY),) * slots)
