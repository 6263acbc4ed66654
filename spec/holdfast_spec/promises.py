"""The promises, and what has to be remembered to check them. Each raises `Violation`.

I1 what was committed at a level can be had, or something fresher, while losses stay within the level's budget; and while there
   were none, what peers hold always covers the next one. I2 nothing corrupt is resumed from. I3 all ranks resume from one copy,
   which every rank of its attempt sealed. I4 what a fenced attempt writes never counts.
"""

from __future__ import annotations

from collections.abc import Collection

from holdfast_core.erasure.groups import Group, tolerance
from holdfast_core.messages import Inventory, StoreInventory
from holdfast_core.planner import Status
from holdfast_core.protection import Holdings
from holdfast_core.timeline import Copy, History

from . import rules
from .group import STORE
from .scene import Scene, Shared
from .sidecar import copy_of
from .world import UP, Ghost, Pod, Store, Violation


def sealed(scene: Scene, k: int) -> None:
    """A process published a snapshot."""
    pod, ghost = scene.pod(k), scene.ghost
    copy = Copy(pod.done, pod.writer)
    if pod.writer != pod.attempt:
        raise Violation(
            "I4", f"attempt {pod.writer} sealed step {copy.step} in pod {pod.label}, which is fenced for {pod.attempt}"
        )
    partial = dict(ghost.sealed)
    ranks = partial.pop(copy, frozenset()) | {pod.index}
    alive = {s.copy for e in scene.places for s in scene.pod(e).slots} | {c for c, _ in scene.store.copies}
    whole = ghost.whole & (alive | {ghost.memory, ghost.peers, ghost.stored})
    if len(ranks) == scene.world.pods:
        whole |= {copy}
    else:
        partial[copy] = ranks
    newest = max([copy.attempt, *(c.attempt for c in partial)])
    partial = {c: r for c, r in partial.items() if c.attempt == newest}
    scene.ghost = ghost._replace(sealed=tuple(sorted(partial.items())), whole=whole)


def committed(scene: Scene, attempt: int, copy: Copy) -> None:
    """A coordinator says that all ranks sealed a step. What one of an earlier attempt says does not count any more."""
    if attempt != scene.decided():
        return
    if copy not in scene.ghost.whole:
        raise Violation("I3", f"step {copy.step} of attempt {copy.attempt} is committed, but not every rank has sealed it")
    if _undamaged(scene, copy):
        scene.ghost = scene.ghost._replace(memory=copy)


def protected(scene: Scene, attempt: int, copy: Copy, groups: tuple[Group, ...]) -> None:
    """A coordinator says that peers hold a step. What is damaged already counts against the budget of its group."""
    if attempt != scene.decided():
        return
    pods = {i: scene.pod(k) for i, k in scene.current().items()}
    outside = [i for i in range(scene.world.pods) if not any(i in g.members for g in groups)]
    fine = {i for i, p in pods.items() if p.net == UP and p.attempt == attempt and not _damaged(p, copy)}
    lost = frozenset(range(scene.world.pods)) - fine | {i for i, c in scene.ghost.hurt if c == copy}
    whole = all(i in pods and copy in rules.good_copies(pods[i]) for i in outside)
    scene.ghost = scene.ghost._replace(peers=copy if whole else None, groups=groups, lost=lost if whole else frozenset())


def stored(scene: Scene, copy: Copy, ranks: frozenset[int]) -> None:
    """A step is committed in the store."""
    if ranks != frozenset(range(scene.world.pods)):
        raise Violation("I3", f"step {copy.step} is committed in the store with the shards of ranks {sorted(ranks)} alone")


def reported(scene: Scene) -> None:
    """The operator has read what the stores hold: it counts as promised from then on, for the decisions to come."""
    pods = [scene.pod(k) for k in scene.current().values() if scene.entries[k].view < 0]
    seen = {p.stored for p in pods if p.stored is not None and rules.really_valid(p.stored, scene.status.history)}
    good = {c for c, fine in scene.store.copies if fine}
    newest = max((c for c in seen & good), default=None)
    if newest is not None and (scene.ghost.stored is None or newest > scene.ghost.stored):
        scene.ghost = scene.ghost._replace(stored=newest)


def _undamaged(scene: Scene, copy: Copy) -> bool:
    pods = [scene.pod(k) for k in scene.current().values()]
    return len(pods) == scene.world.pods and all(p.net == UP and copy in rules.good_copies(p) for p in pods)


def _damaged(pod: Pod, copy: Copy) -> bool:
    slot = any(s.copy == copy and not s.good for s in pod.slots)
    return slot or any(b.parity.copy == copy and not b.good for b in rules.buffers(pod))


def lost(scene: Scene, index: int) -> None:
    """A pod that counts lost its RAM, or was given up."""
    gone = scene.ghost.lost | {index} if scene.ghost.peers else frozenset()
    hurt = frozenset((i, c) for i, c in scene.ghost.hurt if i != index)
    scene.ghost = scene.ghost._replace(memory=None, lost=gone, hurt=hurt)


def damaged(scene: Scene, index: int, copy: Copy, *, parity: bool) -> None:
    """What a pod that counts holds of a copy is corrupt: its own snapshot, or parity."""
    if copy == scene.ghost.memory and not parity:
        scene.ghost = scene.ghost._replace(memory=None)
    if copy == scene.ghost.peers:
        scene.ghost = scene.ghost._replace(lost=scene.ghost.lost | {index})
    if parity:
        scene.ghost = scene.ghost._replace(hurt=scene.ghost.hurt | {(index, copy)})


def encoded(scene: Scene, k: int, copy: Copy) -> None:
    """A pod has made parity, or tried to."""
    pod = scene.pod(k)
    if (pod.index, copy) in scene.ghost.hurt and any(b.parity.copy == copy and b.good for b in rules.buffers(pod)):
        scene.ghost = scene.ghost._replace(hurt=scene.ghost.hurt - {(pod.index, copy)})


def rotten(scene: Scene, copy: Copy) -> None:
    """A shard in the store is corrupt."""
    if copy == scene.ghost.stored:
        scene.ghost = scene.ghost._replace(stored=None)


# --- decisions


def planned(scene: Scene, before: Status) -> None:
    """The operator wrote its status: pods it gave up are lost, and a source it chose must be good enough."""
    after = scene.status
    old = {w.index: w.incarnation for w in before.workers}
    for worker in after.workers:
        if old.get(worker.index, worker.incarnation) != worker.incarnation:
            lost(scene, worker.index)
    if after.history != before.history:
        _resumed(scene, before, after)
    reported(scene)


def _resumed(scene: Scene, before: Status, after: Status) -> None:
    source = after.source
    if source is not None and copy_of(source) not in scene.ghost.whole:
        raise Violation("I3", f"step {source.step} of attempt {source.attempt} is resumed, but not every rank has sealed it")
    if source is not None and not rules.really_valid(copy_of(source), before.history):
        raise Violation("I4", f"step {source.step} of attempt {source.attempt} is resumed, though a later attempt abandoned it")
    if not within(scene):
        scene.ghost = scene.ghost._replace(peers=None, lost=frozenset())
    stale = any(scene.entries[k].view >= 0 for k in scene.current().values())
    for name, copy in _promised(scene.ghost):
        if not stale and (source is None or source.step < copy.step):
            step = source.step if source else -1
            raise Violation("I1", f"step {copy.step} was committed at {name}, within its budget, and step {step} is resumed")
    scene.ghost = _without_void(scene.ghost, after.history)


def _without_void(ghost: Ghost, history: History) -> Ghost:
    memory, peers, kept = (
        c if c and rules.really_valid(c, history) else None for c in (ghost.memory, ghost.peers, ghost.stored)
    )
    whole = frozenset(c for c in ghost.whole if rules.really_valid(c, history))
    hurt = frozenset((i, c) for i, c in ghost.hurt if rules.really_valid(c, history))
    gone = ghost.lost if peers else frozenset()
    return ghost._replace(memory=memory, peers=peers, stored=kept, whole=whole, lost=gone, hurt=hurt)


def _promised(ghost: Ghost) -> list[tuple[str, Copy]]:
    found = (("memory", ghost.memory), ("peers", ghost.peers), ("the store", ghost.stored))
    return [(name, copy) for name, copy in found if copy is not None]


def within(scene: Scene) -> bool:
    """Whether what was lost since the last promise of level `peers` is no more than each group can bear."""
    return _bearable(scene.ghost, scene.ghost.lost | scene.away())


def _bearable(ghost: Ghost, gone: Collection[int]) -> bool:
    inside = {i for g in ghost.groups for i in g.members}
    return inside.issuperset(gone) and all(len(set(g.members) & set(gone)) <= g.parity for g in ghost.groups)


def launched(scene: Scene, k: int) -> None:
    """A process started: it restores from the slot that its attempt resumes from."""
    pod = scene.pod(k)
    assert pod.prepare is not None
    source = pod.prepare.source
    if source is not None and pod.process == "up" and copy_of(source) not in rules.good_copies(pod):
        raise Violation("I2", f"pod {pod.label} resumes from a corrupt snapshot of step {source.step}")
    others = (scene.pod(e) for e in scene.places)
    for other in (p for p in others if p.attempt == pod.attempt and p.prepare is not None and p.prepare.source != source):
        raise Violation("I3", f"in attempt {pod.attempt}, {pod.label} and {other.label} resume from different steps")


def together(pods: list[Pod]) -> None:
    """Ranks exchange gradients: all of them train the same step."""
    steps = {p.exchanged for p in pods}
    if len(steps) > 1:
        raise Violation("I3", f"ranks train different steps: {sorted(steps)}")


# --- in every state


def check(scene: Scene) -> None:
    """What holds whatever happens next. The same view of what is held is looked at once."""
    shared = scene.shared
    up = [scene.entries[k].pod for k in scene.current().values() if scene.pod(k).net == UP]
    key = (scene.operator.status, scene.ghost_id, scene.store, tuple(shared.once(_content, shared, p) for p in up))
    if key not in shared.checked:
        _check(scene, [shared.pods.values[p] for p in up])
        shared.checked.add(key)


def _content(shared: Shared, number: int) -> int:
    """A pod without all but what it holds."""
    pod = shared.pods.values[number]
    return shared.pods.id(Pod(pod.index, pod.incarnation, pod.node, slots=pod.slots, parity=pod.parity))


def _check(scene: Scene, pods: list[Pod]) -> None:
    ghost, history, size = scene.ghost, scene.status.history, scene.world.pods
    away = scene.away()
    gone = ghost.lost | away
    held = Holdings(
        {p.index: rules.good_copies(p) for p in pods},
        {p.index: tuple(b.parity for b in rules.buffers(p) if b.good) for p in pods},
    )
    _one_attempt(pods, history)
    required = [("the store", ghost.stored)]
    required += [("memory", ghost.memory)] if not away else []
    required += [("peers", ghost.peers)] if _bearable(ghost, gone) else []
    best = None
    if any(copy for _, copy in required):
        best = rules.restorable(held, _good(scene.store), size, history)
    for name, copy in required:
        if copy is not None and (best is None or best.step < copy.step):
            step = best.step if best else -1
            raise Violation(
                "I1", f"step {copy.step} is committed at {name}, within its budget, but only step {step} can be had"
            )
    if ghost.peers is not None and not gone:
        _no_gap(ghost, held, pods)


def _good(store: Store) -> Inventory:
    return Inventory((StoreInventory(STORE, tuple(c for c, good in store.copies if good), store.records),))


def _one_attempt(pods: list[Pod], history: History) -> None:
    by_step: dict[int, Copy] = {}
    for copy in (c for p in pods for c in rules.copies(p) if rules.really_valid(c, history)):
        if by_step.setdefault(copy.step, copy) != copy:
            raise Violation(
                "I4", f"step {copy.step} counts as written by two attempts: {by_step[copy.step].attempt}, {copy.attempt}"
            )


def _no_gap(ghost: Ghost, held: Holdings, pods: list[Pod]) -> None:
    assert ghost.peers is not None
    if sum(len(g.members) for g in ghost.groups) < len(pods):
        return
    domains = {p.index: p.node for p in pods}
    expected = min(tolerance(g, domains) for g in ghost.groups)
    copies = {b.copy for entries in held.parity.values() for b in entries if b.copy.step >= ghost.peers.step}
    if not any(rules.faults(held, c, len(pods), domains) >= expected for c in copies):
        raise Violation("I1", f"step {ghost.peers.step} was protected against {expected} losses, and is not any more: a gap")
