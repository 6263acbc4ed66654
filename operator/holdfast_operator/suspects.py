"""Nodes that new pods should rather not go to: Kubernetes needs half a minute to see that a node is dead, we know in seconds.

Only a preference, and only for a while: a wrong guess must not leave a pod without a node.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_core.planner import PodView

_MEMORY = 120.0  # seconds; by then the node is either back or marked by Kubernetes
_FRESH = 1.5  # seconds; heartbeats come twice a second
_KNOCKS = 2  # at the pod's address, without an answer


class Suspects:
    """Nodes by the time at which a pod on them was last found silent."""

    def __init__(self, lost_after: float) -> None:
        self._lost_after = lost_after
        self._since: dict[str, float] = {}

    def update(self, views: Iterable[PodView], now: float) -> None:
        """Learn from what is seen: silence raises suspicion, a word from any pod there clears it."""
        pods = [v for v in views if v.node]
        for pod in pods:
            if self._silent(pod):
                self._since[pod.node] = now
        for pod in pods:
            if pod.fresh(_FRESH) and pod.node_ready is not False:
                self._since.pop(pod.node, None)
        self._since = {n: t for n, t in self._since.items() if now - t < _MEMORY}

    @property
    def since(self) -> dict[str, float]:
        """Names, and when a pod there was last found silent."""
        return dict(self._since)

    def _silent(self, pod: PodView) -> bool:
        if pod.phase in ("Succeeded", "Failed"):
            return False
        if pod.node_ready is False:
            return True
        unheard = pod.agent_age is not None and pod.agent_age > self._lost_after
        return (unheard and pod.dial_failures > 0 and not pod.refused) or pod.unanswered >= _KNOCKS
