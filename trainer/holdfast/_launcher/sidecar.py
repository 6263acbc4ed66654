"""The launcher's connection to its sidecar. It comes back by itself: the sidecar may be restarted while processes run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from holdfast_core import local
from holdfast_core.wire import WireError

from .._log import note

_LINE_LIMIT = 4 << 20
_BACK_OFF = (0.02, 0.05, 0.1, 0.25, 0.5)  # seconds
_CONNECT_SECONDS = 2.0
_SEND_SECONDS = 5.0
_COMPLAIN_AFTER = (2.0, 10.0, 60.0)  # seconds without a sidecar


class Sidecar:
    """Says Hello with the whole state on each connection and each change; hands what comes to `obey`."""

    def __init__(self, path: str, hello: Callable[[], local.Hello], obey: Callable[[local.Message], None]) -> None:
        self._path = path
        self._hello = hello
        self._obey = obey
        self._changed = asyncio.Event()
        self._ever = False

    def changed(self) -> None:
        """Something that Hello tells is different now."""
        self._changed.set()

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        loop = asyncio.get_running_loop()
        lost, tries, complaints = loop.time(), 0, 0
        while True:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    reader, writer = await asyncio.open_unix_connection(self._path, limit=_LINE_LIMIT)
            except OSError as error:
                waited = loop.time() - lost
                if complaints < len(_COMPLAIN_AFTER) and waited >= _COMPLAIN_AFTER[complaints]:
                    complaints += 1
                    self._complain(waited, error)
                await asyncio.sleep(_BACK_OFF[min(tries, len(_BACK_OFF) - 1)])
                tries += 1
                continue
            if complaints or not self._ever:
                note(f"connected to the sidecar at {self._path}")
            self._ever = True
            await self._talk(reader, writer)
            lost, tries, complaints = loop.time(), 0, 0

    def _complain(self, waited: float, error: OSError) -> None:
        what = "lost the sidecar" if self._ever else "waiting for the sidecar"
        reason = error.strerror or type(error).__name__
        note(f"{what} at {self._path} for {waited:.0f} s ({reason}); trying on. Is its container running?")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        telling = asyncio.ensure_future(self._tell(writer))
        try:
            while line := await reader.readline():
                self._obey(local.unpack(line)[0])
        except (OSError, WireError, ValueError) as error:
            note(f"the sidecar's connection broke: {error}")
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await telling
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._changed.clear()
            writer.write(local.pack(self._hello()))
            try:
                async with asyncio.timeout(_SEND_SECONDS):  # not wait_for: in 3.11 it may swallow a cancellation
                    await writer.drain()
            except OSError:  # a TimeoutError is one
                writer.transport.abort()
                return
            await self._changed.wait()
