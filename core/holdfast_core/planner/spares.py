"""Pods that wait without a rank: how many there are to be, and which of them takes the place of a lost pod.

A spare that is lost before it had a rank is no failure of the job: it is replaced, and nothing is charged for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from . import nodes, reasons
from .judge import OF_NODES, lost
from .passing import Pass
from .types import Cause, CreateSpare, DeletePod, PodView, Spare, Worker

_FRESH = 1.5  # seconds; a spare that is silent for longer may have died with the pod that it would replace
_PATIENCE = 5.0  # seconds that a pod may look for a node while a spare is there
_ENDING = ("completing", "finishing", "done")


def update(work: Pass) -> None:
    """Give up lost spares, and have as many as are wanted. The job's last step needs none any more."""
    if work.status.stage in _ENDING:
        return
    pods = {p.spare: p for p in work.observed.pods if work.waits(p)}
    kept = [replace(s, seen=s.seen or s.number in pods) for s in work.status.spares if not _lost(work, s, pods)]
    kept = kept[: work.job.spares]
    count = work.status.spare_count
    new = range(count + 1, count + 1 + work.job.spares - len(kept))
    work.set(spares=(*kept, *map(Spare, new)), spare_count=count + len(new))
    _relieve(work)
    for spare in work.status.spares:
        if not spare.seen and _placed(work):
            work.do(CreateSpare(spare.number))
    work.set(spares_ready=sum(_is_ready(p) for p in pods.values() if work.waits(p)))


def _placed(work: Pass) -> bool:
    """Whether every worker's pod has a node: a spare must not take the last one."""
    return len(work.current) == work.job.replicas and all(p.node for p in work.current)


def _relieve(work: Pass) -> None:
    """A pod that finds no node gives its index to a spare that has one."""
    stuck = [p for p in work.current if p.waiting.startswith("Unschedulable") and p.age > _PATIENCE]
    gone = {p.index: Cause(reasons.POD_DELETED, p.waiting) for p in stuck}
    taken = take(work, gone) if gone and work.status.stage == "gathering" else {}
    if taken:
        work.set(workers=tuple(taken.get(w.index, w) for w in work.status.workers))


def _lost(work: Pass, spare: Spare, pods: Mapping[int, PodView]) -> bool:
    pod, name = pods.get(spare.number), work.job.spare_name(spare.number)
    gone = Cause(reasons.POD_DELETED, f"pod {name} is gone") if spare.seen else None
    cause = lost(pod, [*work.current, *pods.values()], work.job.policy) if pod else gone
    if cause is not None:
        nodes.blame(work, [(pod, cause)] if pod else [])
        work.emit(reasons.SPARE_LOST, f"spare {spare.number}: {cause.message}", warning=True)
    return cause is not None


def take(work: Pass, gone: Mapping[int, Cause]) -> dict[int, Worker]:
    """Spares for lost pods, as far as there are any that can start at once; by index."""
    left = [p for p in work.current if p.index not in gone]
    dead = {p.node for p in work.current if p.index in gone and gone[p.index].reason in OF_NODES}
    ready = sorted(able(work, dead), key=lambda p: (sum(q.domain == p.domain for q in left), p.spare))
    workers = [w for w in work.status.workers if w.index in gone]
    taken = {
        w.index: Worker(w.index, w.incarnation + 1, seen=True, spare=p.spare) for w, p in zip(workers, ready, strict=False)
    }
    used = {w.spare for w in taken.values()}
    work.set(spares=tuple(s for s in work.status.spares if s.number not in used))
    for index, worker in taken.items():
        work.emit(reasons.SPARE_TAKEN, f"pod {index}: spare {worker.spare} takes its place at once")
    return taken


def able(work: Pass, dead: Collection[str] = ()) -> list[PodView]:
    """The spares that could take an index now: those that are warm, and not on one of these nodes."""
    return [p for p in work.observed.pods if work.waits(p) and _is_ready(p) and p.node not in dead]


def release(work: Pass) -> None:
    """The job needs no spares any more: they hold nothing, and no logs."""
    work.set(spares=(), spares_ready=0)
    for pod in work.observed.pods:
        if pod.spare and work.is_stale(pod) and not pod.deleting:
            work.do(DeletePod(pod.name, "the job has ended"))


def _is_ready(pod: PodView) -> bool:
    up = pod.phase == "Running" and not pod.deleting and bool(pod.ip)
    return up and pod.fresh(_FRESH) and pod.agent is not None and pod.agent.launcher
