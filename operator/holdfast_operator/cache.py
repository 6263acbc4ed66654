"""The job's pods as last seen: fed by watch events, corrected by a list now and then. One cache for each job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Body = Mapping[str, Any]


class PodCache:
    """Pods by name. A list that was overtaken by an event while it was under way is not believed."""

    def __init__(self) -> None:
        self._pods: dict[str, Body] = {}
        self._expected: set[str] = set()
        self.changes = 0

    @property
    def pods(self) -> tuple[Body, ...]:
        """All pods, by name."""
        return tuple(self._pods[name] for name in sorted(self._pods))

    def event(self, kind: str | None, pod: Body) -> None:
        """Apply a watch event (`kind` None: from the list at the start of a watch)."""
        self.changes += 1
        self._expected.discard(pod["metadata"]["name"])
        if kind == "DELETED":
            self._pods.pop(pod["metadata"]["name"], None)
        else:
            self._pods[pod["metadata"]["name"]] = pod

    def expect(self, name: str) -> None:
        """A pod is about to be created; call `made` with the answer."""
        self._expected.add(name)

    def made(self, pod: Body) -> None:
        """The answer to a creation, before its event as a rule. If events of the pod came first, they are newer."""
        name = pod["metadata"]["name"]
        if name in self._expected and name not in self._pods:
            self.event("ADDED", pod)

    def listed(self, pods: Iterable[Body], changes: int) -> bool:
        """Replace all by a list that was asked for when `changes` stood so; False if it is out of date."""
        if changes != self.changes:
            return False
        self._pods = {p["metadata"]["name"]: p for p in pods}
        return True
