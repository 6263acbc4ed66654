"""What happens between pods: connections to the coordinator, orders to all, blocks pulled from peers; and pods that go."""

from __future__ import annotations

from typing import Any

from holdfast_core.messages import MEMORY, PEERS, Command, Order, Parity
from holdfast_core.timeline import merge, valid

from . import group, memory, operator, promises, sidecar
from .scene import Scene, Shared, dead
from .world import ALONE, HALF, LINKED, UP, Pod, Prepare


def push(pod: Pod, orders: tuple[Order, ...]) -> Pod:
    """Orders are on their way to a member."""
    return pod._replace(down=(*pod.down, *orders))


def unlinked(pod: Pod, link: int) -> Pod:
    """Its connection is gone, with what was on the wire."""
    return pod._replace(link=link, up=(), down=())


# --- the coordinator


def hear(scene: Scene, k: int) -> None:
    """The coordinator reads a member's next word."""
    leader = scene.leader(k)
    assert leader is not None
    pod = scene.pod(k)
    scene.put(k, pod._replace(up=pod.up[1:]))
    told(scene, leader, scene.shared.once(_heard, scene.shared, scene.entries[leader].coordinator, pod.index, pod.up[0]))


def _heard(shared: Shared, number: int, index: int, word: Any) -> tuple[int, tuple[Order, ...]]:
    frozen, orders = group.heard(shared.groups.values[number], index, word)
    return shared.groups.id(frozen), orders


def passed(shared: Shared, number: int, seconds: float) -> tuple[int, tuple[Order, ...]]:
    """The coordinator after a while, and what it orders then."""
    frozen, orders = group.passed(shared.groups.values[number], seconds)
    return shared.groups.id(frozen), orders


def told(scene: Scene, leader: int, result: tuple[int, tuple[Order, ...]]) -> None:
    """A coordinator has decided: its orders go to all who are connected."""
    number, orders = result
    scene.entries[leader] = scene.entries[leader]._replace(coordinator=number)
    if not orders:
        return
    for k in scene.followers(leader):
        if scene.pod(k).link == LINKED:
            scene.step(k, push, orders)
    for order in orders:
        note(scene, order)


def note(scene: Scene, order: Order) -> None:
    """A step is said to be committed."""
    if order.kind == "committed" and order.level == MEMORY:
        promises.committed(scene, order.attempt, order.copy)
    if order.kind == "committed" and order.level == PEERS:
        promises.protected(scene, order.attempt, order.copy, order.groups)


def join(scene: Scene, k: int) -> None:
    """A member connects: it is told where things stand, and tells all that it has."""
    leader = scene.leader(k)
    assert leader is not None
    number, orders = scene.shared.once(_joined, scene.shared, scene.entries[leader].coordinator, scene.pod(k).index)
    scene.entries[leader] = scene.entries[leader]._replace(coordinator=number)
    scene.step(k, _connected, orders)


def _joined(shared: Shared, number: int, index: int) -> tuple[int, tuple[Order, ...]]:
    frozen, orders = group.joined(shared.groups.values[number], index)
    return shared.groups.id(frozen), orders


def _connected(pod: Pod, orders: tuple[Order, ...]) -> Pod:
    return pod._replace(link=LINKED, up=sidecar.everything(pod), down=orders)


def leave(scene: Scene, k: int) -> None:
    """The coordinator notices that a connection is gone."""
    leader = scene.leader(k)
    if leader is not None:
        number = scene.shared.once(_left, scene.shared, scene.entries[leader].coordinator, scene.pod(k).index)
        scene.entries[leader] = scene.entries[leader]._replace(coordinator=number)
    scene.step(k, unlinked, ALONE)


def _left(shared: Shared, number: int, index: int) -> int:
    return shared.groups.id(group.left(shared.groups.values[number], index))


def cut(scene: Scene, k: int) -> None:
    """A member's connection breaks; the coordinator may learn of it later."""
    if scene.pod(k).link == LINKED:
        scene.step(k, unlinked, HALF if scene.leader(k) is not None else ALONE)


def disband(scene: Scene, k: int) -> None:
    """A coordinator is gone, and all connections to it."""
    if scene.entries[k].coordinator >= 0:
        for e in scene.followers(k):
            scene.step(e, unlinked, ALONE)
        scene.entries[k] = scene.entries[k]._replace(coordinator=-1)


def commit(scene: Scene, k: int) -> None:
    """`Steps.commit`: refused if a later attempt has been in the store; else the manifest is written."""
    frozen, store = scene.group(k), scene.store
    prepare, committing = scene.pod(k).prepare, group.committing(frozen)
    assert prepare is not None
    assert committing is not None
    copy, ranks = committing
    if any(r.attempt > prepare.attempt for r in store.records):
        scene.put_group(k, group.refused(frozen))
        return
    records = tuple(sorted({*store.records, *prepare.history}))
    scene.store = store._replace(copies=tuple(sorted({**dict(store.copies), copy: True}.items())), records=records)
    after, orders = group.stored(frozen, copy)
    scene.put(k, scene.pod(k)._replace(stored=copy))
    told(scene, k, (scene.shared.groups.id(after), orders))
    promises.stored(scene, copy, ranks)


# --- peers


def encode(scene: Scene, k: int) -> None:
    """A pod completes its parity of a copy, or finds out why it can't."""
    task = scene.pod(k).task
    assert task is not None
    _with_peers(scene, k, _encoded)
    promises.encoded(scene, k, task.order.copy)


def _encoded(shared: Shared, pod: int, peers: tuple[tuple[int, int], ...], _: bool | None) -> tuple[int, dict[int, int]]:
    after, others = sidecar.encode(shared.pods.values[pod], {i: shared.pods.values[p] for i, p in peers})
    return shared.pods.id(after), {i: shared.pods.id(p) for i, p in others.items()}


def load(scene: Scene, k: int) -> None:
    """A pod gets the source's step from where it does not have it itself."""
    source = scene.pod(k).prepare.source  # type: ignore[union-attr]
    assert source is not None
    _with_peers(scene, k, _loaded, dict(scene.store.copies).get(sidecar.copy_of(source)))


def _loaded(shared: Shared, pod: int, peers: tuple[tuple[int, int], ...], stored: bool | None) -> tuple[int, dict[int, int]]:
    after, others = sidecar.load(shared.pods.values[pod], stored, {i: shared.pods.values[p] for i, p in peers})
    return shared.pods.id(after), {i: shared.pods.id(p) for i, p in others.items()}


def _with_peers(scene: Scene, k: int, work: Any, stored: bool | None = None) -> None:
    places = scene.peers(k)
    peers = tuple((i, scene.entries[e].pod) for i, e in sorted(places.items()))
    pod, others = scene.shared.once(work, scene.shared, scene.entries[k].pod, peers, stored)
    scene.entries[k] = scene.entries[k]._replace(pod=pod)
    for i, e in places.items():
        scene.entries[e] = scene.entries[e]._replace(pod=others[i])


def _wanted(shared: Shared, number: int) -> Parity:
    pod = shared.pods.values[number]
    assert pod.task is not None
    kind = sidecar.wanted(pod, pod.task.order)
    assert kind is not None
    return kind


def can_begin(scene: Scene, k: int) -> bool:
    """Whether the sources of a parity are all there, so that a buffer is cleared for it."""
    pod = scene.pod(k)
    if pod.task is None or pod.task.begun:
        return False
    copy, places = pod.task.order.copy, scene.peers(k)
    kind = scene.shared.once(_wanted, scene.shared, scene.entries[k].pod)
    sources = [scene.pod(places[i]) if i in places else None for i in kind.group if i != pod.index]
    return all(p is not None and memory.find(p, copy) is not None for p in (pod, *sources))


def can_load(scene: Scene, k: int) -> bool:
    """Whether those who may have something are in the attempt too, or can't answer at all."""
    pod = scene.pod(k)
    assert pod.prepare is not None
    if sidecar.level_of(pod) != PEERS:
        return True
    for member in pod.prepare.members:
        e = scene.find(member.host) if member.index != pod.index else None
        if e is not None and scene.pod(e).attempt != pod.attempt and scene.reaches(pod, scene.pod(e)):
            return False
    return True


# --- what the operator makes of them


def deliver(scene: Scene, label: str, command: Command) -> None:
    """A command arrives, if the pod can be reached."""
    k = scene.find(label)
    if k is None or scene.pod(k).net != UP:
        return
    if command.kind != "prepare":
        before = scene.pod(k).phase
        scene.step(k, sidecar.command, command.kind, command.attempt)
        if before == "prepared" and scene.pod(k).phase != "prepared":
            promises.launched(scene, k)
        return
    pod = scene.pod(k)
    if command.attempt > pod.attempt and any(m.index == pod.index for m in command.members):
        leave(scene, k)
        disband(scene, k)
        scene.step(k, sidecar.prepare, operator.prepare_of(command))
        lead(scene, k)


def lead(scene: Scene, k: int, rounds: int = 0) -> None:
    """`Lifecycle._open_coordinator`."""
    pod = scene.pod(k)
    if pod.prepare is not None and pod.prepare.members[0].index == pod.index:
        scene.put_group(k, scene.shared.once(group.create, scene.world, pod.prepare, _newest(scene, pod.prepare), rounds))


def _newest(scene: Scene, prepare: Prepare) -> Any:
    """`Level.refresh`."""
    return max(valid((c for c, _ in scene.store.copies), merge(scene.store.records, prepare.history)), default=None)


def remove(scene: Scene, k: int, *, power: bool = False) -> None:
    """A pod goes, with all that it had in RAM. Without power its object stays, and others notice later that it is silent."""
    pod, counts = scene.pod(k), k in scene.current().values()
    disband(scene, k)
    if power:
        cut(scene, k)
        view = scene.shared.views.id(operator.view(pod))
        scene.entries[k] = scene.entries[k]._replace(view=view)
        scene.step(k, dead)
    else:
        leave(scene, k)
        del scene.entries[k]
    if counts:
        promises.lost(scene, pod.index)
