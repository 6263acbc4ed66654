"""The HTTP API for the operator (and `holdfast run`) and the group's WebSocket; beside it plain metrics and health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiohttp import WSMsgType, web
from holdfast_core import wire
from holdfast_core.messages import Command, Inventory

from .changes import Changes
from .lifecycle import BadCommand, Lifecycle, StaleCommand
from .metrics import Metrics
from .state import States
from .stores.level import Level

_WRITE_LIMIT = 10.0  # seconds; a reader that is stuck for longer is cut off
_HEARTBEAT = 2.0
_JOIN_LIMIT = 5.0
_BODY_LIMIT = 8 << 20  # bytes; a prepare command names every pod
STALE_ATTEMPT = 4409  # WebSocket close code
_log = logging.getLogger(__name__)


class Api:
    """Request handlers; none of them blocks."""

    def __init__(self, lifecycle: Lifecycle, states: States, changes: Changes, levels: Mapping[str, Level]) -> None:
        self._lifecycle, self._states, self._changes, self._levels = lifecycle, states, changes, levels

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.add_routes([
            web.get("/v1/events", self._events),
            web.get("/v1/state", self._state),
            web.get("/v1/inventory", self._inventory),
            web.get("/v1/group", self._group),
            web.post("/v1/command", self._command),
        ])  # fmt: skip
        return app

    async def _state(self, request: web.Request) -> web.Response:
        return _json(wire.dumps(self._states.state()))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        await response.prepare(request)
        subscription = self._changes.subscribe()
        try:
            while True:
                await subscription.wait()
                line = wire.dumps(self._states.state()) + b"\n"
                async with asyncio.timeout(_WRITE_LIMIT):
                    await response.write(line)
        except (ConnectionError, TimeoutError):
            return response
        finally:
            self._changes.unsubscribe(subscription)

    async def _inventory(self, request: web.Request) -> web.Response:
        found = await asyncio.gather(*(level.inventory() for level in self._levels.values()))
        return _json(wire.dumps(Inventory(tuple(found))))

    async def _command(self, request: web.Request) -> web.Response:
        try:
            await self._lifecycle.obey(wire.loads(Command, await request.read()))
        except StaleCommand:
            return web.json_response({"attempt": self._lifecycle.record.attempt}, status=409)
        except (wire.WireError, BadCommand) as error:
            return web.json_response({"error": str(error)}, status=400)
        return _json(b"{}")

    async def _group(self, request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse(heartbeat=_HEARTBEAT, timeout=1.0, max_msg_size=64 << 20)
        await connection.prepare(request)
        index = await self._join(connection)
        coordinator = self._lifecycle.coordinator
        if index is None or coordinator is None:
            await connection.close(code=STALE_ATTEMPT, message=b"not the coordinator of that attempt")
        else:
            await coordinator.serve(index, connection)
        return connection

    async def _join(self, connection: web.WebSocketResponse) -> int | None:
        """The index of a member of the coordinator's own attempt; None for anybody else."""
        try:
            async with asyncio.timeout(_JOIN_LIMIT):
                hello = await connection.receive()
            body = wire.decode(dict[str, int], hello.json()) if hello.type is WSMsgType.TEXT else {}
        except (TimeoutError, ValueError):
            return None
        coordinator, index = self._lifecycle.coordinator, body.get("index", -1)
        if coordinator is None or body.get("attempt") != coordinator.attempt:
            return None
        return index if coordinator.decisions.knows(index) else None


def monitoring(metrics: Metrics, healthy: Callable[[], str]) -> web.Application:
    """/metrics and /healthz. `healthy` says what is missing, nothing if all is well."""

    async def show(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def health(request: web.Request) -> web.Response:
        missing = healthy()
        return web.Response(text=missing or "ok", status=503 if missing else 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", show), web.get("/healthz", health)])
    return app


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
