"""What may go wrong, while the budget of its kind lasts. Each kind in one sentence, as `KINDS` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from holdfast_core.planner.types import Send
from holdfast_core.timeline import Copy

from . import group, memory, operator, pods, promises, rules, sidecar
from .scene import Scene
from .world import ALONE, DARK, LINKED, SEALED, UP, Action, Pod

KINDS = {
    "process": "a rank's process is killed, also while it writes a slot",
    "restart": "a sidecar's container is killed and comes back",
    "pod": "a pod is deleted by force, with its RAM",
    "node": "a node loses power, with the RAM of its pods",
    "partition": "a node is cut off from all others, and goes on by itself",
    "wrong": "the operator takes a pod for lost that is fine",
    "corrupt": "a bit of a snapshot or of parity flips in RAM",
    "rot": "a shard in the store is corrupt",
    "away": "peers are out of reach for a moment, for one that brings a lost rank back from them",
    "cut": "a connection to the coordinator breaks, with what was on the wire",
    "slow": "a member stays away for long, or a round takes too long",
    "stall": "what a pod tells the operator is late",
    "hang": "processes outlive the operator's patience with them",
    "crash": "the operator dies between writing its status and carrying out what it decided",
    "lose": "a command is lost",
    "stray": "a command arrives twice, the second time at any later moment",
}


def possible(scene: Scene) -> Iterator[Action]:
    """The faults that the budget still allows."""
    if scene.budget[-1]:
        for k in scene.places:
            yield from _of_pod(scene, k)
        yield from _of_nodes(scene)
        yield from _of_operator(scene)


def _of_pod(scene: Scene, k: int) -> Iterator[Action]:
    pod, label = scene.pod(k), scene.label(k)
    if pod.net != UP or pod.prepare is None:
        return
    entry = scene.entries[k]
    torn = pod.done < pod.exchanged and pod.writer == pod.attempt and memory.tear(pod) is not None
    simple = (
        ("process", "kill", pod.process == "up"), ("process", "tear", torn and pod.process == "up"),
        ("restart", "restart", True), ("pod", "remove", True),
        ("away", "away", sidecar.asks_peers(pod)), ("cut", "cut", pod.link == LINKED), ("stall", "stall", entry.view < 0),
        ("wrong", "misjudge", not entry.noticed),
    )  # fmt: skip
    yield from ((action, label) for kind, action, possible in simple if possible and scene.left(kind))
    if scene.left("corrupt"):
        yield from _corruptions(pod, label)
    if scene.left("slow") and scene.entries[k].coordinator >= 0:
        yield from _delays(scene, k)


def _corruptions(pod: Pod, label: str) -> Iterator[Action]:
    for number, slot in enumerate(pod.slots):
        if slot.state == SEALED and slot.good:
            yield ("flip", label, number)
    for number, buffer in enumerate(pod.parity):
        if buffer is not None and buffer.good:
            yield ("damage", label, number)


def _delays(scene: Scene, k: int) -> Iterator[Action]:
    number = scene.entries[k].coordinator
    waits = group.waits(scene.shared.groups.values[number])
    if waits.misses:
        yield ("delay", scene.label(k), group.AWAY)
    if waits.busy:
        yield ("delay", scene.label(k), group.LONG)


def _of_nodes(scene: Scene) -> Iterator[Action]:
    nodes = sorted({scene.pod(k).node for k in scene.places if scene.pod(k).net == UP and scene.pod(k).prepare is not None})
    for node in nodes:
        if scene.left("node"):
            yield ("power", node)
        if scene.left("partition"):
            yield ("part", node)


def _of_operator(scene: Scene) -> Iterator[Action]:
    pending = scene.operator.pending
    if scene.left("crash") and (pending or scene.operator.inventory >= 0):
        yield ("crash",)
    if pending and isinstance(scene.shared.orders.values[pending[0]], Send):
        if scene.left("lose"):
            yield ("lose",)
        if scene.left("stray"):
            yield ("stray",)
    if scene.left("hang") and scene.status.stage == "gathering" and scene.status.stage_since == operator.NOW:
        yield ("hang",)
    if scene.left("rot"):
        for number, (_, good) in enumerate(scene.store.copies):
            if good:
                yield ("rot", number)


# --- what they do


def _kill(scene: Scene, label: str) -> None:
    scene.spend("process")
    scene.step(scene.at(label), _killed)


def _killed(pod: Pod) -> Pod:
    return sidecar.ended(pod._replace(process="dead"))


def _tear(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.spend("process")
    torn = memory.tear(scene.pod(k))
    assert torn is not None
    scene.put(k, _killed(torn))


def _restart(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.spend("restart")
    pods.cut(scene, k)
    half, rounds = scene.pod(k).link, group.rounds(scene.group(k))
    pods.disband(scene, k)
    scene.step(k, sidecar.restarted)
    scene.step(k, pods.unlinked, half if scene.leader(k) not in (None, k) else ALONE)
    pods.lead(scene, k, rounds)


def _remove(scene: Scene, label: str) -> None:
    scene.spend("pod")
    pods.remove(scene, scene.at(label))


def _power(scene: Scene, node: str) -> None:
    scene.spend("node")
    for label in [scene.label(k) for k in scene.places if scene.pod(k).node == node and scene.pod(k).net == UP]:
        pods.remove(scene, scene.at(label), power=True)


def _part(scene: Scene, node: str) -> None:
    scene.spend("partition")
    inside = [k for k in scene.places if scene.pod(k).node == node and scene.pod(k).net == UP]
    for k in inside:
        view = scene.shared.views.id(operator.view(scene.pod(k)))
        scene.entries[k] = scene.entries[k]._replace(view=view)
        scene.step(k, _darkened)
    for k in scene.places:
        leader = scene.leader(k)
        if leader is not None and not scene.reaches(scene.pod(k), scene.pod(leader)):
            pods.cut(scene, k)


def _darkened(pod: Pod) -> Pod:
    return pod._replace(net=DARK)


def _away(scene: Scene, label: str) -> None:
    scene.spend("away")
    scene.step(scene.at(label), sidecar.out_of_reach)


def _cut(scene: Scene, label: str) -> None:
    scene.spend("cut")
    pods.cut(scene, scene.at(label))


def _stall(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.spend("stall")
    scene.entries[k] = scene.entries[k]._replace(view=scene.shared.views.id(operator.view(scene.pod(k))))


def _misjudge(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.spend("wrong")
    scene.entries[k] = scene.entries[k]._replace(noticed=True)


def _flip(scene: Scene, label: str, number: int) -> None:
    k = scene.at(label)
    scene.spend("corrupt")
    copy = scene.pod(k).slots[number].copy
    scene.put(k, memory.corrupt(scene.pod(k), number))
    _hurt(scene, k, copy)


def _damage(scene: Scene, label: str, number: int) -> None:
    k = scene.at(label)
    scene.spend("corrupt")
    copy = rules.buffer(scene.pod(k), number).parity.copy
    scene.put(k, memory.damage(scene.pod(k), number))
    _hurt(scene, k, copy, parity=True)


def _hurt(scene: Scene, k: int, copy: Copy, *, parity: bool = False) -> None:
    if k in scene.current().values():
        promises.damaged(scene, scene.pod(k).index, copy, parity=parity)


def _rot(scene: Scene, number: int) -> None:
    scene.spend("rot")
    copies = list(scene.store.copies)
    copies[number] = (copies[number][0], False)
    scene.store = scene.store._replace(copies=tuple(copies))
    promises.rotten(scene, copies[number][0])


def _delay(scene: Scene, label: str, seconds: float) -> None:
    k = scene.at(label)
    scene.spend("slow")
    pods.told(scene, k, scene.shared.once(pods.passed, scene.shared, scene.entries[k].coordinator, seconds))


def _crash(scene: Scene) -> None:
    scene.spend("crash")
    scene.operator = scene.operator._replace(pending=(), inventory=-1)


def _hang(scene: Scene) -> None:
    scene.spend("hang")
    later = replace(scene.status, stage_since=operator.NOW - operator.PATIENCE)
    scene.operator = scene.operator._replace(status=scene.shared.statuses.id(later))


def _lose(scene: Scene) -> None:
    scene.spend("lose")
    scene.operator = scene.operator._replace(pending=scene.operator.pending[1:])


def _stray(scene: Scene) -> None:
    scene.spend("stray")
    now = scene.operator
    scene.operator = now._replace(strays=tuple(sorted((*now.strays, now.pending[0]))))


DO: dict[str, Callable[..., None]] = {
    "kill": _kill, "tear": _tear, "restart": _restart, "remove": _remove, "power": _power, "part": _part, "away": _away,
    "cut": _cut, "stall": _stall, "misjudge": _misjudge, "flip": _flip, "damage": _damage, "rot": _rot, "delay": _delay,
    "hang": _hang, "crash": _crash, "lose": _lose, "stray": _stray,
}  # fmt: skip
