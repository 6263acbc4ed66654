"""`plan(job, observed, status, now)`: the one place where it is decided what happens to a job next.

Pure and level-triggered: called with the same view twice it orders the same, and every order is idempotent, so a lost order
or an operator that died half way is cured by the next pass. The stages of an attempt (see `types.Status`):

    gathering -> preparing -> launching -> running -> completing -> finishing -> done
                     any failure: [draining ->] gathering, with the next attempt number
"""

from __future__ import annotations

from dataclasses import replace

from . import conditions, nodes, pace, progress, protected, reasons, roster, spares, stages
from .judge import lost, stranded, suspicious, watchers
from .passing import Pass
from .types import Cause, CreatePod, DeletePod, EndPod, Job, Observed, Plan, Status, Worker

__all__ = ["plan"]
_SUSPENSE = 0.15  # seconds between looks while somebody may be dead


def plan(job: Job, observed: Observed, status: Status, now: float) -> Plan:
    """Decide. The caller writes `Plan.status` first and carries out the actions after that."""
    work = Pass(job, observed, status, now)
    if work.status.stage == "new":
        _begin(work)
    if work.status.terminal:
        _tidy(work)
    else:
        _pods(work)
        progress.update(work)
        pace.update(work)
        stages.advance(work)
    protected.update(work)
    conditions.update(work)
    if not work.status.terminal and any(suspicious(p, job.policy) for p in work.current):
        work.look_again = min(work.look_again, _SUSPENSE)
    return work.result()


def _begin(work: Pass) -> None:
    workers = tuple(Worker(i) for i in range(work.job.replicas))
    work.set(workers=workers, attempt=1, phase="Pending")
    work.stage("gathering", "job accepted")


def _pods(work: Pass) -> None:
    """Give up lost pods (their successors get new names) and create what is missing."""
    gone = _find_lost(work) | _find_vanished(work)
    _remember_seen(work)
    if gone and work.status.stage in ("completing", "finishing"):
        gone = {}  # training has ended well: nobody is replaced any more
    stages.pods_lost(work, gone)
    nodes.update(work)
    spares.update(work)
    for worker in work.status.workers:
        missing = work.pod(worker.index) is None and not worker.seen  # a seen one is gone: its successor comes with give_up
        if missing and work.status.stage not in ("completing", "finishing"):
            work.do(CreatePod(worker.index, worker.incarnation))
    _delete_stale(work)


def _find_lost(work: Pass) -> dict[int, Cause]:
    found: dict[int, Cause] = {}
    for pod in work.current:
        watching = watchers(pod, work.current, work.job, work.status.attempt)
        cause = lost(pod, work.current, work.job.policy, watching)
        if cause is not None:
            found[pod.index] = cause
    return found | stranded(work.current, found, nodes.dark(work), work.now)


def _find_vanished(work: Pass) -> dict[int, Cause]:
    vanished = [w for w in work.status.workers if w.seen and work.pod(w.index) is None]
    names = {w.index: roster.name(work.job, w) for w in vanished}
    return {i: Cause(reasons.POD_DELETED, f"pod {name} is gone") for i, name in names.items()}


def _remember_seen(work: Pass) -> None:
    seen = {p.index for p in work.current}
    work.set(workers=tuple(replace(w, seen=w.seen or w.index in seen) for w in work.status.workers))


def _delete_stale(work: Pass) -> None:
    """A pod of a dead node stays Terminating for ever, unless it may be deleted by force."""
    for pod in (p for p in work.observed.pods if work.is_stale(p)):
        if work.job.policy.force_delete and nodes.dead(work, pod):
            work.do(DeletePod(pod.name, f"node {pod.node} is dead", force=True))
        elif not pod.deleting:
            work.do(DeletePod(pod.name, "replaced by a newer incarnation"))


def _tidy(work: Pass) -> None:
    """An ended job: after a failure the pods stop, but stay for their logs."""
    work.set(ready=0)
    spares.release(work)
    nodes.release(work)
    if work.status.phase == "Failed":
        for pod in work.observed.pods:
            if pod.phase in ("Pending", "Running") and not pod.deleting:
                work.do(EndPod(pod.name))
