"""Is a pod still one to count on? Pure judgement from stream, knocks, peers, node; fencing makes a wrong guess harmless.

A pod whose event stream is silent may be dead, out of CPU, or cut off from the operator alone. Three things tell these apart:
knocks at its port (the kernel of a busy node answers, one without power does not), what the peers that watch it say, and what
Kubernetes knows of its node, which is late. Only if all that can speak agree is a pod given up within seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ..messages import Member
from ..protection import groups_of, watched
from . import reasons
from .types import Cause, Job, PodView, Policy

OF_NODES = (reasons.NODE_LOST, reasons.POD_UNREACHABLE)  # causes that are attributed to the pod's node
_FRESH = 2.5  # seconds; heartbeats come twice a second
_WORD = 1.5  # seconds that a peer's word is good for
_DEAF = 1.0  # seconds without an answer after which a peer's word counts
_KNOCKS = 2  # without an answer
_LEASE_STALE = 20.0  # seconds without renewal: the node's own grace period is of this order
_ALONE = 60.0  # silence after which a pod is given up though nobody else can confirm that we see anything at all
_SUSPICIOUS = 0.8  # seconds of silence after which the operator knocks


def lost(pod: PodView, pods: Sequence[PodView], policy: Policy, watching: Collection[int] = ()) -> Cause | None:
    """Why a pod no longer counts, or None while it does (or may yet). `watching`: indexes of those who surely watch it."""
    if pod.deleting:
        return Cause(reasons.POD_DELETED, f"pod {pod.name} is being deleted")
    if pod.phase in ("Failed", "Succeeded"):
        return Cause(reasons.POD_FAILED, f"pod {pod.name} ended by itself in phase {pod.phase}", _quoted(pod))
    if pod.node_ready is False and not pod.fresh(_FRESH):
        return _node_lost(pod, "is not Ready")
    if pod.agent_age is None or pod.agent_age <= policy.confirm_after or pod.refused:
        return None
    return _silent(pod, pods, policy, watching)


def _silent(pod: PodView, pods: Sequence[PodView], policy: Policy, watching: Collection[int]) -> Cause | None:
    """A pod that was heard before, or should have been, and is not any more."""
    others = [p for p in pods if p.name != pod.name and p.fresh(_WORD)]
    deaf = [p for p in others if _misses(p, pod, watching)]
    hearing = [p for p in others if p.index in watching and p not in deaf]
    long, dialled = not pod.fresh(policy.lost_after), pod.dial_failures > 0
    if long and dialled and (pod.node_lease_age or 0.0) > _LEASE_STALE:
        return _node_lost(pod, f"has not renewed its lease for {pod.node_lease_age:.0f} s")
    if pod.answers or hearing:  # it lives: it has no CPU, or we are cut off from it while it trains on
        return _unreachable(pod, _alive(pod, hearing)) if not pod.fresh(_ALONE) and dialled else None
    if deaf and pod.unanswered >= _KNOCKS:
        return _unreachable(pod, _dead(pod, deaf))
    witnesses = [p for p in pods if p.name != pod.name and p.fresh(_FRESH)]
    if not long or not dialled or (not witnesses and pod.fresh(_ALONE)):
        return None  # without witnesses we may be the one who is cut off: wait for the node's word
    return _unreachable(pod, _heard(pod, witnesses))


def stranded(pods: Sequence[PodView], gone: Mapping[int, Cause], dark: Mapping[str, float], now: float) -> dict[int, Cause]:
    """Pods that no kubelet will ever start: they are on nodes that are found dead now, or on those in `dark`, which were found
    dead before, and when.

    Only pods that were made before that: a newer one was told to keep away, and found no better place. Else it would be made
    anew again and again, until Kubernetes knows too.
    """
    dead = {**dark, **{p.node: math.inf for p in pods if p.index in gone and gone[p.index].reason in OF_NODES}}
    waiting = [p for p in pods if p.node in dead and p.phase == "Pending" and p.agent is None and p.index not in gone]
    early = [p for p in waiting if now - p.age < dead[p.node]]
    text = "pod {} was made before node {} was found dead, and sent there"
    return {p.index: Cause(reasons.POD_UNREACHABLE, text.format(p.name, p.node)) for p in early}


def suspicious(pod: PodView, policy: Policy) -> bool:
    """Whether a pod is silent, and it will soon be known why."""
    return pod.agent_age is not None and _SUSPICIOUS < pod.agent_age <= policy.lost_after + 1.0 and not pod.deleting


def watchers(pod: PodView, pods: Sequence[PodView], job: Job, attempt: int) -> frozenset[int]:
    """Who surely watches a pod: sidecars that were told of all these pods as the members of this attempt. Empty while the pod
    is heard: then nobody asks."""
    if pod.agent_age is None or pod.agent_age <= job.policy.confirm_after:
        return frozenset()
    members = [Member(p.index, p.name, p.ip, p.port, p.index * job.processes, job.processes, p.domain) for p in pods]
    groups = groups_of(members, job.peers)
    told = [p.index for p in pods if p.agent is not None and p.agent.attempt == attempt and p.agent.phase != "idle"]
    return frozenset(i for i in told if any(m.index == pod.index for m in watched(i, members, groups)))


def _misses(witness: PodView, pod: PodView, watching: Collection[int]) -> bool:
    """Whether a peer says that this very pod does not answer it, not an earlier one of the same index."""
    if witness.agent is None or pod.agent is None:
        return False
    together = 0 < pod.agent.attempt == witness.agent.attempt
    return (together or witness.index in watching) and witness.agent.silent.get(pod.index, 0.0) > _DEAF


def _node_lost(pod: PodView, why: str) -> Cause:
    silence = "never heard" if pod.agent_age is None else f"sidecar silent for {pod.agent_age:.1f} s"
    return Cause(reasons.NODE_LOST, f"node {pod.node} of pod {pod.name} {why}", (silence,))


def _unreachable(pod: PodView, evidence: Sequence[str]) -> Cause:
    text = f"pod {pod.name} on node {pod.node} has been silent for {pod.agent_age:.1f} s"
    lease = () if pod.node_lease_age is None else (f"its node renewed its lease {pod.node_lease_age:.0f} s ago",)
    return Cause(reasons.POD_UNREACHABLE, text, (*evidence, *lease))


def _dead(pod: PodView, deaf: Sequence[PodView]) -> tuple[str, ...]:
    words = [f"{p.name} for {p.agent.silent[pod.index]:.1f} s" for p in deaf[:3] if p.agent]
    return f"{pod.unanswered} knocks at its port got no answer", f"its peers get no answer either: {', '.join(words)}"


def _alive(pod: PodView, hearing: Sequence[PodView]) -> tuple[str, ...]:
    knocks = ("its node answers, its sidecar does not",) if pod.answers else ()
    peers = (f"its peers hear it: {', '.join(p.name for p in hearing[:3])}",) if hearing else ()
    return *knocks, *peers, f"{pod.dial_failures} dials got no answer"


def _heard(pod: PodView, witnesses: Sequence[PodView]) -> tuple[str, ...]:
    seen = f"{len(witnesses)} other pods of the job are heard: {', '.join(p.name for p in witnesses[:3])}"
    return seen, f"{pod.dial_failures} dials got no answer"


def _quoted(pod: PodView) -> tuple[str, ...]:
    return (pod.waiting,) if pod.waiting else ()
