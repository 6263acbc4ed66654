"""All steps that a state allows, and the state that each leads to. Steps that need no fault; `faults` has the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from holdfast_core.planner import Observed, plan
from holdfast_core.planner.types import Action as Order
from holdfast_core.planner.types import CreatePod, DeletePod, Inspect, Send

from . import faults, group, memory, operator, pods, promises, sidecar
from .scene import Scene, Shared, first
from .world import ALONE, DARK, HALF, LINKED, OFF, UP, Action, Pod, State, World

KINDS = (
    "obey", "hear", "left", "join", "stop", "load", "begin", "encode", "upload", "seal", "reap", "wait", "commit", "act",
    "plan", "late", "notice", "look", "heal", "train",
)  # fmt: skip


class Model:
    """The protocol in a world."""

    def __init__(self, world: World) -> None:
        self.world, self.shared = world, Shared(world)
        self.start = first(world, self.shared)

    def actions(self, state: State) -> tuple[list[Action], list[Action]]:
        """All that may happen next: steps, the most urgent first, and faults."""
        scene = Scene(self.shared, state)
        return list(normal(scene)), list(faults.possible(scene))

    def apply(self, state: State, action: Action) -> State:
        """The state after an action, and after what follows at once in this world. Raises Violation."""
        scene = Scene(self.shared, state)
        _do(scene, action)
        eager = self.world.eager
        while eager and (follows := next(normal(scene, eager), None)) is not None:
            _do(scene, follows)
        return scene.state

    def check(self, state: State) -> None:
        """What holds in every state. Raises Violation."""
        promises.check(Scene(self.shared, state))


def _do(scene: Scene, action: Action) -> None:
    (_DO.get(action[0]) or faults.DO[action[0]])(scene, *action[1:])


# --- what is possible


def normal(scene: Scene, only: Collection[str] = KINDS) -> Iterator[Action]:
    """Steps that need no fault, most urgent first: a schedule that always takes the first one is fair."""
    for k, entry in enumerate(scene.entries):
        for kind in scene.shared.once(_alone, scene.shared, entry.pod):
            if kind in only and _ready(scene, k, kind):
                yield (kind, scene.label(k))
    yield from _of_groups(scene, only)
    yield from _of_views(scene, only)
    yield from _of_operator(scene, only)
    if "train" in only:
        attempts = {scene.pod(k).writer for k in scene.places if scene.pod(k).process == "up"}
        yield from (("train", attempt) for attempt in sorted(attempts) if _trains(scene, attempt))


def _alone(shared: Shared, number: int) -> tuple[str, ...]:
    """What a pod may do, as far as it shows without looking at others."""
    pod = shared.pods.values[number]
    if pod.net == OFF:
        return ("left",) if pod.link == HALF else ()
    return (*_talks(pod), *_works(pod, shared.world))


def _talks(pod: Pod) -> Iterator[str]:
    if pod.link == LINKED:
        yield from (kind for kind, queue in (("obey", pod.down), ("hear", pod.up)) if queue)
    if pod.link == HALF:
        yield "left"
    if sidecar.belongs(pod) and pod.link != LINKED:
        yield "join"


def _works(pod: Pod, world: World) -> list[str]:
    found = []
    if pod.phase == "preparing":
        found.append("load" if pod.ready else "stop")
    if pod.task is not None:
        found += ["encode"] if pod.task.begun else ["begin", "encode"]
    if pod.upload is not None and pod.net == UP:
        found.append("upload")
    if pod.process == "up" and pod.done < pod.exchanged and sidecar.seal(pod, world.skips)[1] in ("sealed", "skipped"):
        found.append("seal")
    if pod.deleting and pod.net == UP:
        found.append("reap")
    return found


def _ready(scene: Scene, k: int, kind: str) -> bool:
    if kind == "join":
        leader = scene.leader(k)
        return leader is not None and scene.reaches(scene.pod(k), scene.pod(leader))
    if kind == "begin":
        return scene.shared.step(_begin, scene.entries[k].pod) != scene.entries[k].pod and pods.can_begin(scene, k)
    if kind == "load":
        return pods.can_load(scene, k)
    return True


def _of_groups(scene: Scene, only: Collection[str]) -> Iterator[Action]:
    for k in scene.places:
        number = scene.entries[k].coordinator
        if number < 0:
            continue
        for seconds in (group.SOON, group.AMNESTY):
            if "wait" in only and _waits(scene, k, seconds):
                yield ("wait", scene.label(k), seconds)
                break
        if (
            "commit" in only
            and scene.world.stores
            and scene.pod(k).net == UP
            and scene.shared.once(_committing, scene.shared, number)
        ):
            yield ("commit", scene.label(k))


def _waits(scene: Scene, k: int, seconds: float) -> bool:
    """Whether time makes a difference. A pod is not forgiven in vain, over and over, while the newest step is missing there."""
    number = scene.entries[k].coordinator
    waits = scene.shared.once(_waiting, scene.shared, number)
    if not waits.pause and (seconds == group.SOON or not waits.leaves_out):
        return False
    if seconds == group.AMNESTY and not all(memory.has_newest(scene.pod(e)) for e in scene.followers(k)):
        return False
    return bool(scene.shared.once(pods.passed, scene.shared, number, seconds) != (number, ()))


def _waiting(shared: Shared, number: int) -> group.Waits:
    return group.waits(shared.groups.values[number])


def _committing(shared: Shared, number: int) -> bool:
    return group.committing(shared.groups.values[number]) is not None


def _of_operator(scene: Scene, only: Collection[str]) -> Iterator[Action]:
    if scene.operator.pending:
        if "act" in only:
            yield ("act",)
    elif "plan" in only and _planned(scene) != (scene.operator.status, scene.operator.pending, scene.operator.inventory):
        yield ("plan",)
    if "late" in only:
        yield from (("late", number) for number, _ in enumerate(scene.operator.strays))


def _of_views(scene: Scene, only: Collection[str]) -> Iterator[Action]:
    for k, entry in enumerate(scene.entries):
        net = scene.pod(k).net
        if net != UP and not entry.noticed and "notice" in only:
            yield ("notice", scene.label(k))
        if net == UP and entry.view >= 0 and "look" in only:
            yield ("look", scene.label(k))
    if "heal" not in only:
        return
    for node in sorted({scene.pod(k).node for k in scene.places if scene.pod(k).net == DARK}):
        yield ("heal", node)


def _trains(scene: Scene, attempt: int) -> bool:
    """Whether all ranks of an attempt can exchange gradients of the next step."""
    members = [scene.pod(k) for k in scene.places if scene.pod(k).attempt == attempt]
    if len(members) != scene.world.pods or any(p.process != "up" or p.writer != attempt for p in members):
        return False
    step = members[0].exchanged + 1
    enough = all(p.done >= step - scene.world.lag for p in members)
    return enough and step <= scene.world.steps and all(scene.reaches(p, members[0]) for p in members)


# --- what they do


def _seal(scene: Scene, label: str) -> None:
    k = scene.at(label)
    _, outcome = scene.shared.once(_sealing, scene.shared, scene.entries[k].pod)
    scene.step(k, _sealed, scene.world.skips)
    if outcome == "sealed":
        promises.sealed(scene, k)


def _sealing(shared: Shared, number: int) -> tuple[Pod, str]:
    return sidecar.seal(shared.pods.values[number], shared.world.skips)


def _sealed(pod: Pod, skips: bool) -> Pod:
    return sidecar.seal(pod, skips)[0]


def _train(scene: Scene, attempt: int) -> None:
    members = [k for k in scene.places if scene.pod(k).attempt == attempt]
    promises.together([scene.pod(k) for k in members])
    for k in members:
        scene.step(k, _exchanged)


def _exchanged(pod: Pod) -> Pod:
    return pod._replace(exchanged=pod.exchanged + 1)


def _obey(pod: Pod) -> Pod:
    return sidecar.obey(pod._replace(down=pod.down[1:]), pod.down[0])


def _begin(pod: Pod) -> Pod:
    return sidecar.begin(pod) or pod


def _upload(pod: Pod) -> Pod:
    return sidecar.upload(pod, group.STORE)


def _wait(scene: Scene, label: str, seconds: float) -> None:
    k = scene.at(label)
    pods.told(scene, k, scene.shared.once(pods.passed, scene.shared, scene.entries[k].coordinator, seconds))


def _notice(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.entries[k] = scene.entries[k]._replace(noticed=True)


def _look(scene: Scene, label: str) -> None:
    k = scene.at(label)
    scene.entries[k] = scene.entries[k]._replace(view=-1, noticed=False)


def _heal(scene: Scene, node: str) -> None:
    for k in [k for k in scene.places if scene.pod(k).node == node and scene.pod(k).net == DARK]:
        scene.step(k, _healed)
        _look(scene, scene.label(k))
        if scene.leader(k) is None and scene.pod(k).link:
            scene.step(k, pods.unlinked, ALONE)


def _healed(pod: Pod) -> Pod:
    return pod._replace(net=UP)


def _by_pod(work: Callable[[Pod], Pod]) -> Callable[[Scene, str], None]:
    return lambda scene, label: scene.step(scene.at(label), work)


def _by_place(work: Callable[[Scene, int], None]) -> Callable[[Scene, str], None]:
    return lambda scene, label: work(scene, scene.at(label))


# --- the operator


def _seen(scene: Scene) -> tuple[tuple[int, int, bool], ...]:
    """What the operator sees of each pod, as numbers: what it tells, or told when it was last heard."""
    shared, blank = scene.shared, scene.shared.views.id(operator.BLANK)
    counts = {(w.index, w.incarnation) for w in scene.status.workers}
    found = []
    for entry in scene.entries:
        pod = shared.pods.values[entry.pod]
        live = shared.once(_live, shared, entry.pod) if (pod.index, pod.incarnation) in counts else blank
        found.append((shared.once(_outside, shared, entry.pod), entry.view if entry.view >= 0 else live, entry.noticed))
    return tuple(found)


def _live(shared: Shared, number: int) -> int:
    return shared.views.id(operator.view(shared.pods.values[number]))


def _outside(shared: Shared, number: int) -> int:
    """A pod without its inside, as Kubernetes knows it."""
    pod = shared.pods.values[number]
    return shared.pods.id(Pod(pod.index, pod.incarnation, pod.node, deleting=pod.deleting))


def _planned(scene: Scene) -> tuple[int, tuple[int, ...], int]:
    reachable = tuple(scene.label(k) for k in scene.places if scene.pod(k).net == UP)
    return scene.shared.once(_plan, scene.shared, scene.operator.status, _seen(scene), scene.operator.inventory, reachable)  # type: ignore[no-any-return]


def _plan(
    shared: Shared, status: int, seen: tuple[tuple[int, int, bool], ...], stores: int, reachable: tuple[str, ...]
) -> tuple[int, tuple[int, ...], int]:
    """One pass: the status that it writes, its orders, and whether the stores' answer still counts."""
    before = shared.statuses.values[status]
    views = tuple(
        operator.pod_view(shared.pods.values[p], shared.views.values[v], shared.world, lost=noticed) for p, v, noticed in seen
    )
    inventory = operator.inventory(shared.stores.values[stores]) if stores >= 0 else None
    found = plan(operator.job(shared.world), Observed(views, inventory), before, operator.NOW)
    orders = [_plain(a) for a in found.actions if operator.matters(a)]
    pending = tuple(shared.orders.id(a) for a in orders if not isinstance(a, Send) or operator.label(a.pod) in reachable)
    kept = stores if found.status.stage == before.stage and found.status.attempt == before.attempt else -1
    return shared.statuses.id(operator.settled(found.status)), pending, kept


def _plain(order: Order) -> Order:
    """Without texts and the like."""
    if isinstance(order, Send):
        return Send(order.pod, replace(order.command, reason="", grace_seconds=0.0, master_port=0, every=None))
    return replace(order, reason="") if isinstance(order, DeletePod) else order


def _do_plan(scene: Scene) -> None:
    before = scene.status
    status, pending, inventory = _planned(scene)
    scene.operator = scene.operator._replace(status=status, pending=pending, inventory=inventory)
    promises.planned(scene, before)


def _act(scene: Scene) -> None:
    order = scene.shared.orders.values[scene.operator.pending[0]]
    scene.operator = scene.operator._replace(pending=scene.operator.pending[1:])
    carry_out(scene, order)


def carry_out(scene: Scene, order: Order) -> None:
    """What an order of the planner does to the world."""
    if isinstance(order, Send):
        pods.deliver(scene, operator.label(order.pod), order.command)
    elif isinstance(order, CreatePod):
        if scene.find(f"{order.index}.{order.incarnation}") is None:
            node = operator.place_for(order.index, order.incarnation, [scene.pod(k) for k in scene.places], scene.world)
            scene.add(sidecar.born(order.index, order.incarnation, node, scene.world.slots))
    elif isinstance(order, DeletePod):
        _delete(scene, operator.label(order.name))
    elif isinstance(order, Inspect):
        scene.operator = scene.operator._replace(inventory=scene.shared.stores.id(scene.store))


def _delete(scene: Scene, label: str) -> None:
    """A pod on a node that can't be reached stays Terminating; one without power has nothing left that could matter."""
    k = scene.find(label)
    if k is None:
        return
    if scene.pod(k).net == DARK:
        scene.put(k, scene.pod(k)._replace(deleting=True))
    else:
        pods.remove(scene, k)


def _late(scene: Scene, number: int) -> None:
    strays = scene.operator.strays
    scene.operator = scene.operator._replace(strays=(*strays[:number], *strays[number + 1 :]))
    carry_out(scene, scene.shared.orders.values[strays[number]])


_DO: dict[str, Callable[..., None]] = {
    "obey": _by_pod(_obey), "begin": _by_pod(_begin), "upload": _by_pod(_upload), "stop": _by_pod(sidecar.stopped),
    "hear": _by_place(pods.hear), "left": _by_place(pods.leave), "join": _by_place(pods.join), "load": _by_place(pods.load),
    "encode": _by_place(pods.encode), "reap": _by_place(pods.remove), "commit": _by_place(pods.commit),
    "seal": _seal, "train": _train, "wait": _wait, "plan": _do_plan, "act": _act, "late": _late, "notice": _notice,
    "look": _look, "heal": _heal,
}  # fmt: skip
