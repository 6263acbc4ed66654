"""Nodes that fail again and again: failures are counted in a window, and new pods are kept from the worst.

Never at the price of the job: when a pod finds no other node, all are allowed again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import reasons
from .judge import OF_NODES
from .passing import Pass
from .types import Avoided, Cause, NodeFailure, PodView, Policy, Status, TaintNode, UntaintNode

_SAME = 10.0  # seconds; pods of a node that are lost so close together were lost by one failure
_IN_VAIN = 30.0  # seconds that a pod waits for another node
_MOST = 16  # nodes that are remembered, and failures of each
_LEASE_STALE = 20.0
_RECENT = 120.0  # seconds; by then a node is back, or Kubernetes keeps pods from it
_RENEWED = 15.0  # seconds; kubelets that live renew their lease every ten
_BOOT = 5.0  # seconds that a node takes at least from a failure until it is back
_FRESH = 2.5  # seconds; heartbeats come twice a second


def note(work: Pass, gone: Mapping[int, Cause]) -> None:
    """Remember what is attributed to the nodes of lost pods."""
    blame(work, [(p, gone[p.index]) for p in work.current if p.index in gone])


def blame(work: Pass, lost: Sequence[tuple[PodView, Cause]]) -> None:
    """Of these pods, those that could not be reached any more speak against their nodes. One that was never heard was sent to
    a node that was dead already: that is no second failure."""
    pods = [(pod, cause) for pod, cause in lost if cause.reason in OF_NODES]
    failures = list(work.status.node_failures)
    for pod, cause in pods:
        same = _RECENT if pod.agent_age is None else _SAME
        if pod.node and not any(f.node == pod.node and work.now - f.time < same for f in failures):
            failures.append(NodeFailure(pod.node, work.now, cause.reason, pod.agent_age or 0.0))
    names = (*work.status.dead_pods, *(p.name for p, _ in pods))
    work.set(node_failures=tuple(failures[-_MOST * _MOST :]), dead_pods=names)


def update(work: Pass) -> None:
    """Decide anew which nodes are avoided."""
    policy, before = work.job.policy, work.status.avoided
    failures = tuple(f for f in work.status.node_failures if work.now - f.time < policy.node_window)
    there = {p.name for p in work.observed.pods}
    work.set(node_failures=failures, dead_pods=tuple(n for n in work.status.dead_pods if n in there))
    work.set(avoided=worst(failures, policy, before))
    if work.status.avoided:
        _escape(work)
    _tell(work, before)
    _taint(work)


def worst(failures: Sequence[NodeFailure], policy: Policy, before: Sequence[Avoided]) -> tuple[Avoided, ...]:
    """Nodes with as many failures as the limit, the ones that failed last; `failures` are those in the window, oldest first."""
    if not policy.node_limit:
        return ()
    since = {a.node: a.since for a in before}
    by_node: dict[str, list[NodeFailure]] = defaultdict(list)
    for failure in failures:
        by_node[failure.node].append(failure)
    bad = sorted((f for f in by_node.values() if len(f) >= policy.node_limit), key=lambda found: found[-1].time)
    return tuple(
        Avoided(
            found[0].node,
            len(found),
            f"{len(found)} failures within {policy.node_window:.0f} s, the last one {found[-1].reason}",
            since.get(found[0].node, found[-1].time),
            found[-policy.node_limit].time + policy.node_window,
        )
        for found in bad[-_MOST:]
    )


def suspects(status: Status, now: float) -> dict[str, float]:
    """Nodes that failed a moment ago but are not avoided, and when: Kubernetes may not know yet that they are dead."""
    avoided = {a.node for a in status.avoided}
    recent = {f.node: f.time for f in status.node_failures if now - f.time < _RECENT}
    return {node: at for node, at in recent.items() if node not in avoided}


def dark(work: Pass) -> dict[str, float]:
    """Nodes that were found dead, and when, without a sign of life since: no pod there is heard, and their lease was not
    renewed, which must be known once a kubelet would have had the time to."""
    recent = {f.node: f.time for f in work.status.node_failures if work.now - f.time < _RECENT}
    return {node: at for node, at in recent.items() if _dark([p for p in work.observed.pods if p.node == node], work.now - at)}


def _dark(pods: Sequence[PodView], failed_ago: float) -> bool:
    leases = [p.node_lease_age for p in pods if p.node_lease_age is not None]
    known = bool(leases) or failed_ago < _RENEWED
    return known and not any(p.fresh(_FRESH) for p in pods) and all(age > failed_ago - _BOOT for age in leases)


def dead(work: Pass, pod: PodView) -> bool:
    """Whether a replaced pod was lost by the death of its node, as far as Kubernetes can tell too.

    Of one that was going before nobody else can tell it: both signs must agree then, since a kubelet that lives will end it.
    """
    stale = (pod.node_lease_age or 0.0) > _LEASE_STALE
    if pod.name in work.status.dead_pods:
        return pod.node_ready is False or stale
    return pod.deleting and pod.node_ready is False and stale


def release(work: Pass) -> None:
    """The job has ended: it has no opinion on nodes any more."""
    work.set(avoided=(), dead_pods=())
    _taint(work)


def _escape(work: Pass) -> None:
    """A pod that waits for another node in vain is made anew, without the conditions that it was made with."""
    stuck = [p for p in work.observed.pods if _in_vain(work, p)]
    if not stuck:
        return
    nodes = {a.node for a in work.status.avoided}
    text = f"pod {stuck[0].name} finds no other node ({stuck[0].waiting}): {', '.join(sorted(nodes))} may be used again"
    work.emit(reasons.NODES_AVOIDED_IN_VAIN, text, warning=True)
    work.set(avoided=(), node_failures=tuple(f for f in work.status.node_failures if f.node not in nodes))
    indexes, numbers = {p.index for p in stuck if not p.spare}, {p.spare for p in stuck}
    workers = (replace(w, incarnation=w.incarnation + 1, seen=False) if w.index in indexes else w for w in work.status.workers)
    work.set(workers=tuple(workers), spares=tuple(s for s in work.status.spares if s.number not in numbers))


def _in_vain(work: Pass, pod: PodView) -> bool:
    created = work.now - pod.age
    restricted = any(a.since <= created for a in work.status.avoided)
    wanted = work.waits(pod) or work.roster.as_worker(pod) is not None
    return wanted and restricted and pod.age > _IN_VAIN and pod.waiting.startswith("Unschedulable")


def _tell(work: Pass, before: Sequence[Avoided]) -> None:
    old, new = {a.node for a in before}, {a.node: a for a in work.status.avoided}
    for node, found in new.items():
        if node not in old:
            work.emit(reasons.NODE_AVOIDED, f"node {node}: {found.reason}: new pods go elsewhere", warning=True)
    for node in sorted(old - new.keys()):
        work.emit(reasons.NODE_RESTORED, f"node {node} may be used again")


def _taint(work: Pass) -> None:
    """Ordered each time, so that an order that got lost does not matter; whether nodes are tainted at all is the operator's."""
    now = [a.node for a in work.status.avoided]
    once = tuple(dict.fromkeys((*work.status.once_avoided, *now)))[-2 * _MOST :]
    work.set(once_avoided=once)
    for node in once:
        work.do(TaintNode(node) if node in now else UntaintNode(node))
