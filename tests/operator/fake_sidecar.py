"""A sidecar's API on a loopback address of its own, with the job's real mTLS: says what a test tells it to say."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from holdfast_core import config, wire
from holdfast_core.messages import AgentState, Command, Inventory


class FakeSidecar:
    """Listens on `host`:7470 (any 127.x.y.z is this machine)."""

    def __init__(self, host: str, state: AgentState, files: Mapping[str, str], folder: Path) -> None:
        self.host, self.state, self.commands = host, state, list[Command]()
        self.inventory: Inventory | None = Inventory()
        self.asked = self.streams = 0
        self.answer = 200
        self._changed = asyncio.Condition()
        self._free = asyncio.Event()
        self._free.set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(cadata=files["ca.crt"])
        (folder / "tls.pem").write_text(files["tls.key"] + files["tls.crt"])
        self._context.load_cert_chain(folder / "tls.pem")
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/events", self._events),
                web.post("/v1/command", self._command),
                web.get("/v1/inventory", self._inventory),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, config.API_PORT, ssl_context=self._context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def hold(self) -> None:
        """Say nothing more, with connections open."""
        self._free.clear()

    def go_on(self) -> None:
        """Say what there is to say again."""
        self._free.set()

    async def say(self, state: AgentState) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while True:
            await self._free.wait()
            await response.write(wire.dumps(self.state) + b"\n")
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), 0.5)
                except TimeoutError:
                    continue

    async def _command(self, request: web.Request) -> web.Response:
        self.commands.append(wire.loads(Command, await request.read()))
        return web.json_response({}, status=self.answer)

    async def _inventory(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.inventory is None:
            return web.Response(status=500)
        return web.Response(body=wire.dumps(self.inventory))
