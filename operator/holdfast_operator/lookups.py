"""What is looked up, not watched: the health of a node whose pod is in doubt, warnings about that pod, the labels of nodes.

Look-ups run in the background and wake the reconciler; a pass uses what is there. So nothing watches all nodes and events of
a cluster, and a hanging API server delays nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from . import api, observe
from .api import Api, ApiError
from .observe import NodeHealth

T = TypeVar("T")
_AGAIN = 2.0  # seconds after a first failure; twice as many after each one more in a row
_NORMAL = ("Unhealthy", "BackOff", "Failed", "FailedScheduling")  # what still starts, or the pod's own status tells better


class Lookup(Generic[T]):
    """Values by key, fetched in the background, at most once in `every` seconds for each key; sooner after a failure."""

    def __init__(self, fetch: Callable[[str], Awaitable[T]], empty: T, every: float, wake: Callable[[], None]) -> None:
        self._fetch, self._empty, self._every, self._wake = fetch, empty, every, wake
        self._values: dict[str, tuple[float, T]] = {}
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def get(self, key: str) -> T:
        """What is known, if it is not too old; asks for what is missing."""
        at, value = self._values.get(key, (-1e9, self._empty))
        now = time.monotonic()
        if now > self._due.get(key, -1e9) and key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._refresh(key))
        return value if now - at <= 4 * self._every + 10 else self._empty

    async def close(self) -> None:
        """Stop looking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self, key: str) -> None:
        try:
            value = await self._fetch(key)
        except ApiError:
            return  # what was known stands for a while
        finally:
            self._tasks.pop(key, None)
            self._failures[key] = failures = self._failures.get(key, 0) + 1
            self._due[key] = time.monotonic() + min(self._every, _AGAIN * 2 ** min(failures - 1, 10))
        now = time.monotonic()
        changed = self._values.get(key, (0.0, self._empty))[1] != value
        self._values[key], self._due[key], self._failures[key] = (now, value), now + self._every, 0
        if changed:
            self._wake()


async def node_health(client: Api, node: str) -> NodeHealth:
    """A node's Ready condition and the age of its lease. A node that is gone is not ready."""
    try:
        body = await client.get(api.node(node))
    except ApiError as error:
        return NodeHealth(ready=False) if error.code == 404 else NodeHealth()
    conditions = body.get("status", {}).get("conditions") or []
    ready = next((c.get("status") == "True" for c in conditions if c.get("type") == "Ready"), None)
    return NodeHealth(ready, await _lease_age(client, node))


async def node_labels(client: Api, node: str) -> Mapping[str, str]:
    """A node's labels; none of one that is gone."""
    try:
        body = await client.get(api.node(node))
    except ApiError as error:
        if error.code == 404:
            return {}
        raise
    return dict(body["metadata"].get("labels") or {})


async def _lease_age(client: Api, node: str) -> float | None:
    try:
        lease = await client.get(api.node_lease(node))
    except ApiError:
        return None
    renewed = observe.seconds(lease.get("spec", {}).get("renewTime"))
    return None if renewed is None else max(0.0, time.time() - renewed)


async def pod_warning(client: Api, namespace: str, pod: str) -> str:
    """The latest warning that was posted about a pod, as "Reason: message"; empty if there is none."""
    selector = f"involvedObject.kind=Pod,involvedObject.name={pod},type=Warning"
    found = (await client.get(api.core(namespace, "events"), fieldSelector=selector)).get("items") or []
    events = [e for e in found if e.get("reason") not in _NORMAL]
    if not events:
        return ""
    latest = max(events, key=_event_time)
    return f"{latest.get('reason', 'Warning')}: {' '.join(str(latest.get('message', '')).split())}"[:500]


def _event_time(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max((t for t in times if t), default="")
