"""Kubernetes Events on the job: posted in the background, repeated ones counted instead of piled up."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import Any

from holdfast_core.planner import Emit, Job

from . import api, names
from .api import Api, ApiError
from .status import iso

log = logging.getLogger(__name__)
_WAITING = 200  # events that may wait to be posted; a flood beyond it is dropped, status has the last of it


class EventPoster:
    """Posts events one after another. Failure to post is logged and never disturbs anything else."""

    def __init__(self, client: Api) -> None:
        self._api = client
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING)

    def post(self, job: Job, event: Emit) -> None:
        """Queue an event."""
        try:
            self._queue.put_nowait(build(job, event, time.time()))
        except asyncio.QueueFull:
            log.warning("event dropped, too many wait: %s: %s", event.reason, event.message)

    async def run(self) -> None:
        """Post for ever."""
        while True:
            body = await self._queue.get()
            try:
                await self._post(body)
            except ApiError as error:
                log.warning("event not posted (%s): %s: %s", error, body["reason"], body["message"])

    async def _post(self, body: dict[str, Any]) -> None:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        try:
            await self._api.create(api.core(namespace, "events"), body)
        except ApiError as error:
            if error.code != 409:
                raise
            path = api.core(namespace, "events", name)
            known = await self._api.get(path)
            again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": body["lastTimestamp"]}
            await self._api.patch(path, again)


def build(job: Job, event: Emit, now: float) -> dict[str, Any]:
    """The event's body. Its name depends on what it says, so that the same again is found and counted."""
    digest = hashlib.sha256(f"{job.uid}|{event.reason}|{event.message}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message[:1000],
        "source": {"component": names.COMPONENT},
        "firstTimestamp": iso(now),
        "lastTimestamp": iso(now),
        "count": 1,
    }
