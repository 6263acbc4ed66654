"""The TrainingJob object and the record in its status: read when somebody changed it, written with a precondition.

The operator normally is the only one who writes the status; a conflict, or a status that is not the one written last, means
that somebody else did, and then what stands there counts, not what is remembered here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from . import api, status
from .api import Api, ApiError
from .status import Record

_SLOW = 5.0  # seconds between writes of what changes with each step
_WEIGHTY = ("conditions", "observedGeneration", "replicas", "selector")


class Gone(Exception):
    """The job does not exist any more."""


class Keeper:
    """One job's object. `record` is what the planner goes on from."""

    def __init__(self, client: Api, namespace: str, name: str, uid: str) -> None:
        self._api, self._path, self._uid = client, api.job(namespace, name), uid
        self.body: dict[str, Any] = {}
        self.record = Record()
        self._own: deque[str] = deque(maxlen=64)  # versions of our own writes
        self._announced: str | None = None
        self._stale, self._readable = True, False
        self._written_at = -1e9

    def announce(self, version: str) -> None:
        """A watch event showed this version of the object."""
        self._announced = version

    def distrust(self) -> None:
        """Read the object again before the next pass."""
        self._stale = True

    async def load(self) -> None:
        """Have the present object and record; raises Gone, ApiError, or wire.WireError for an unreadable status."""
        known = self._announced is None or self._announced in self._own
        if known and not self._stale and self._readable:
            return
        body = await self._read()
        mine = body.get("status") == self.body.get("status") and bool(self.body)
        self._take(body)
        if not mine or not self._readable:
            self._readable = False
            self.record = status.restore(body.get("status") or {})
            self._readable = True

    async def _read(self) -> dict[str, Any]:
        """What is announced, or distrusted, while the answer is under way may be newer than the answer."""
        announced, self._stale = self._announced, False
        try:
            body = await self._api.get(self._path)
        except ApiError as error:
            self._stale = True
            if error.code == 404:
                raise Gone from error
            raise
        if body["metadata"]["uid"] != self._uid:
            raise Gone
        if self._announced == announced:
            self._announced = None
        return body

    async def save(self, record: Record, document: Mapping[str, Any], now: float) -> None:
        """Write the status if it must be written now; raises ApiError (409: somebody was faster)."""
        present = self.body.get("status") or {}
        weighty = record.steady() != self.record.steady() or any(present.get(k) != document.get(k) for k in _WEIGHTY)
        due = record.planner.terminal or now - self._written_at >= _SLOW
        if weighty or (due and present != document):
            await self.write(document, now)
        self.record = record

    async def write(self, document: Mapping[str, Any], now: float) -> None:
        """Write this status now; raises ApiError."""
        try:
            self._take(await self._api.replace(f"{self._path}/status", {**self.body, "status": document}))
        except ApiError:
            self._stale = True
            raise
        self._written_at = now
        if self._announced in self._own:
            self._announced = None

    def _take(self, body: dict[str, Any]) -> None:
        self.body = body
        self._own.append(body["metadata"]["resourceVersion"])
