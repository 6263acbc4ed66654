"""A small API server in memory: objects by path, resource versions, 409 and 404, and a journal of what was written."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from holdfast_operator.api import ApiError

Body = dict[str, Any]


class FakeApi:
    """Same calls as `holdfast_operator.api.Api`. `refuse(method, path)` may raise an ApiError before anything happens."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.journal: list[tuple[str, str]] = []
        self.refusals: list[Any] = []
        self._versions = itertools.count(100)

    def put(self, path: str, body: Body) -> Body:
        """Place an object as somebody else would."""
        made = copy.deepcopy(body)
        made.setdefault("metadata", {})["resourceVersion"] = str(next(self._versions))
        made["metadata"].setdefault("uid", f"uid-{made['metadata']['resourceVersion']}")
        self.objects[path] = made
        return copy.deepcopy(made)

    async def get(self, path: str, **query: str) -> Body:
        self._check("GET", path)
        if path in self.objects:
            return copy.deepcopy(self.objects[path])
        if path.rsplit("/", 1)[-1] in ("pods", "events"):
            return {"items": [copy.deepcopy(o) for p, o in self.objects.items() if p.startswith(f"{path}/")]}
        raise ApiError(404, "NotFound", path)

    async def create(self, path: str, body: Body) -> Body:
        self._check("POST", path)
        place = f"{path}/{body['metadata']['name']}"
        if place in self.objects:
            raise ApiError(409, "AlreadyExists", place)
        return self.put(place, body)

    async def replace(self, path: str, body: Body) -> Body:
        self._check("PUT", path)
        place = path.removesuffix("/status")
        present = self.objects.get(place)
        if present is None:
            raise ApiError(404, "NotFound", place)
        if present["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", place)
        return self.put(place, {**present, "status": body["status"]} if place != path else body)

    async def patch(self, path: str, body: Body) -> Body:
        self._check("PATCH", path)
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return self.put(path, _merged(self.objects[path], body))

    async def delete(self, path: str, uid: str | None = None, grace: int | None = None) -> None:
        self._check("DELETE", path)
        if path in self.objects and uid in (None, self.objects[path]["metadata"]["uid"]):
            del self.objects[path]

    def written(self, method: str) -> list[str]:
        """Paths written with this method so far."""
        return [path for m, path in self.journal if m == method]

    def _check(self, method: str, path: str) -> None:
        for refuse in self.refusals:
            refuse(method, path)
        self.journal.append((method, path))


def _merged(old: Any, change: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(change, dict):
        return change
    return {**old, **{k: _merged(old.get(k), v) for k, v in change.items()}}
