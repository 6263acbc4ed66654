"""What fails together with a pod: the value of the job's label on its node, else the node itself.

The groups of an attempt are made from it, and who watches whom is judged by it, so it stays as it is while the attempt runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from . import pods
from .lookups import Lookup

_EVERY = 300.0  # seconds between looks at a node's labels


class Domains:
    """Failure domains of one job's nodes. `labels` fetches a node's labels."""

    def __init__(self, labels: Callable[[str], Awaitable[Mapping[str, str]]], wake: Callable[[], None]) -> None:
        self._labels: Lookup[Mapping[str, str] | None] = Lookup(labels, None, _EVERY, wake)
        self._kept: dict[str, str] = {}

    def settled(self, running: bool) -> None:
        """Whether members have been told their domains."""
        if not running:
            self._kept = {}

    def of(self, node: str, topology: str) -> str:
        """The domain of a pod on this node; "" without a node. A node without the label counts by itself: no two pods of a
        group on it must seem to fail apart. What could not be looked up yet is not kept."""
        if not node or topology == pods.HOSTNAME:
            return node
        labels = self._labels.get(node)
        if labels is None:
            return self._kept.get(node, node)
        return self._kept.setdefault(node, labels.get(topology) or node)

    async def close(self) -> None:
        """Stop looking."""
        await self._labels.close()
