"""A member's side of the group: one WebSocket to the coordinator, kept up for as long as the attempt lasts.

After each (re)connection everything that this pod has is said again, so nothing hangs on a message that was lost.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable

import aiohttp
from holdfast_core import wire
from holdfast_core.config import TLS_NAME
from holdfast_core.messages import Order, Reached

_HEARTBEAT = 2.0  # seconds; a coordinator whose node died sends no FIN
_CONNECT = 3.0
_BACKOFF = (0.1, 1.0)
_QUEUE = 1000
_log = logging.getLogger(__name__)


class Member:
    """Connects as pod `index` for `attempt`. `everything` gives what to say first, `obey` takes the orders."""

    def __init__(
        self,
        url: str,
        connector: Callable[[], aiohttp.BaseConnector],
        tls: ssl.SSLContext | None,
        attempt: int,
        index: int,
        everything: Callable[[], Iterable[Reached]],
        obey: Callable[[Order], None],
    ) -> None:
        self._url, self._connector, self._tls = url, connector, tls
        self.attempt, self._index = attempt, index
        self._everything, self._obey = everything, obey
        self._queue: asyncio.Queue[Reached] = asyncio.Queue(_QUEUE)
        self.connected = self._was_connected = self._complained = False

    def report(self, message: Reached) -> None:
        """Tell the coordinator, if it is there; if not, it learns from `everything` when it is."""
        if self.connected and not self._queue.full():
            self._queue.put_nowait(message)

    async def run(self) -> None:
        """Connect, again and again. Never ends."""
        pause = _BACKOFF[0]
        async with aiohttp.ClientSession(connector=self._connector()) as session:
            while True:
                self.connected = False
                try:
                    await self._converse(session)
                    problem = "it was closed"
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    problem = str(error) or type(error).__name__
                pause = self._next_pause(pause, problem)
                await asyncio.sleep(pause)

    def _next_pause(self, pause: float, problem: str) -> float:
        """Longer and longer, unless there was a connection. Only the first of several failures is logged."""
        if self._was_connected or not self._complained:
            _log.info("no connection to the coordinator: %s", problem)
        self._complained = True
        if self._was_connected:
            self._was_connected = False
            return _BACKOFF[0]
        return min(pause * 2, _BACKOFF[1])

    async def _converse(self, session: aiohttp.ClientSession) -> None:
        connecting = session.ws_connect(
            self._url,
            ssl=self._tls if self._tls is not None else True,
            server_hostname=TLS_NAME if self._tls is not None else None,
            heartbeat=_HEARTBEAT,
            timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
        )
        async with asyncio.timeout(_CONNECT):
            connection = await connecting
        try:
            await connection.send_json({"attempt": self.attempt, "index": self._index})
            self._queue = asyncio.Queue(_QUEUE)
            self.connected = self._was_connected = True
            self._complained = False
            for message in self._everything():
                await connection.send_str(wire.dumps(message).decode())
            await self._exchange(connection)
        finally:
            self.connected = False
            await connection.close()

    async def _exchange(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        sending = asyncio.create_task(self._send(connection))
        try:
            async for message in connection:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._receive(message.data)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await self._queue.get()
            await connection.send_str(wire.dumps(message).decode())

    def _receive(self, data: str) -> None:
        try:
            order = wire.loads(Order, data)
        except wire.WireError as error:
            _log.warning("the coordinator sent nonsense: %s", error)
            return
        if order.attempt == self.attempt:
            self._obey(order)
