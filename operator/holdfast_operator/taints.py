"""Taints on nodes that a job avoids, so that other pods avoid them too. Off unless the operator may patch nodes.

Each order is repeated by every pass; what was done is remembered, so that the API server is asked once. A taint of another
job, which serves as well, is looked at now and then: that job may end first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from holdfast_core.planner import Action, TaintNode, UntaintNode

from . import api, names
from .api import Api, ApiError

log = logging.getLogger(__name__)
_AGAIN = 30.0  # seconds after a failure, and between looks at another job's taint


class Taints:
    """Those of one job, whose name and UID are their value. A node has one taint of this key: the first job's stays."""

    def __init__(self, client: Api, job: str, uid: str, enabled: bool) -> None:
        self._api, self._value, self._enabled = client, f"{job}-{uid[:5]}", enabled
        self._done: dict[str, bool] = {}
        self._theirs: dict[str, float] = {}  # when another job's taint was seen
        self._not_before = -1e9

    async def apply(self, actions: Iterable[Action]) -> None:
        """Carry out orders that are not carried out yet. A failure is logged and tried again later."""
        if not self._enabled or time.monotonic() < self._not_before:
            return
        wanted = {a.node: isinstance(a, TaintNode) for a in actions if isinstance(a, TaintNode | UntaintNode)}
        try:
            for node, tainted in wanted.items():
                if self._done.get(node) is not tainted and not (tainted and self._served(node)):
                    await self._write(node, tainted)
        except ApiError as error:
            log.warning("taints of nodes are not as they should be: %s", error)
            self._not_before = time.monotonic() + _AGAIN

    async def clear(self) -> None:
        """The job is gone: so are its taints."""
        self._not_before = -1e9
        await self.apply([UntaintNode(node) for node, tainted in self._done.items() if tainted])

    def _served(self, node: str) -> bool:
        return time.monotonic() - self._theirs.get(node, -1e9) < _AGAIN

    async def _write(self, node: str, tainted: bool) -> None:
        body = await self._node(node)
        if body is None:
            self._done[node] = tainted
            return
        before = body.get("spec", {}).get("taints") or []
        after = _with(before, self._value) if tainted else _without(before, self._value)
        if after != before:
            version = body["metadata"]["resourceVersion"]  # a list is replaced whole: by nobody who did not see it
            await self._api.patch(api.node(node), {"metadata": {"resourceVersion": version}, "spec": {"taints": after}})
        if tainted and after == _without(after, self._value):
            self._theirs[node] = time.monotonic()
        else:
            self._done[node] = tainted

    async def _node(self, name: str) -> dict[str, Any] | None:
        """None if it is gone: then it needs no taint, and has none."""
        try:
            return await self._api.get(api.node(name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise


def _with(taints: list[dict[str, Any]], value: str) -> list[dict[str, Any]]:
    if any(t.get("key") == names.TAINT for t in taints):
        return taints
    return [*taints, {"key": names.TAINT, "value": value, "effect": "NoSchedule"}]


def _without(taints: list[dict[str, Any]], value: str) -> list[dict[str, Any]]:
    return [t for t in taints if (t.get("key"), t.get("value")) != (names.TAINT, value)]
