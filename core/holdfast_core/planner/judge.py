"""Is a pod still one to count on? Pure judgement from stream, peers and node; a wrong guess is made harmless by fencing."""

from __future__ import annotations

from collections.abc import Sequence

from . import reasons
from .types import Cause, PodView, Policy

_FRESH = 2.5  # seconds; heartbeats come once a second
_LEASE_STALE = 20.0  # seconds without renewal: the node's own grace period is of this order
_ALONE = 60.0  # silence after which a pod is given up though nobody else can confirm that we see anything at all


def lost(pod: PodView, pods: Sequence[PodView], policy: Policy) -> Cause | None:
    """Why a pod no longer counts, or None while it does (or may yet)."""
    if pod.deleting:
        return Cause(reasons.POD_DELETED, f"pod {pod.name} is being deleted")
    if pod.phase in ("Failed", "Succeeded"):
        return Cause(reasons.POD_FAILED, f"pod {pod.name} ended by itself in phase {pod.phase}", _quoted(pod))
    if pod.node_ready is False and not pod.fresh(_FRESH):
        return _node_lost(pod, "is not Ready")
    return _silent(pod, pods, policy)


def _silent(pod: PodView, pods: Sequence[PodView], policy: Policy) -> Cause | None:
    """A pod that was heard before, or should have been, and is not any more."""
    if pod.agent_age is None or pod.agent_age <= policy.lost_after or pod.refused or pod.dial_failures < 1:
        return None
    if pod.node_lease_age is not None and pod.node_lease_age > _LEASE_STALE:
        return _node_lost(pod, f"has not renewed its lease for {pod.node_lease_age:.0f} s")
    witnesses = [p.name for p in pods if p.name != pod.name and p.fresh(_FRESH)]
    if not witnesses and pod.agent_age < _ALONE:
        return None  # we may be the one who is cut off: wait for the node's word
    text = f"pod {pod.name} on node {pod.node} has been silent for {pod.agent_age:.1f} s"
    seen = f"{len(witnesses)} other pods of the job are heard: {', '.join(witnesses[:3])}"
    return Cause(reasons.POD_UNREACHABLE, text, (seen, f"{pod.dial_failures} dials got no answer"))


def _node_lost(pod: PodView, why: str) -> Cause:
    silence = "never heard" if pod.agent_age is None else f"sidecar silent for {pod.agent_age:.1f} s"
    return Cause(reasons.NODE_LOST, f"node {pod.node} of pod {pod.name} {why}", (silence,))


def _quoted(pod: PodView) -> tuple[str, ...]:
    return (pod.waiting,) if pod.waiting else ()
