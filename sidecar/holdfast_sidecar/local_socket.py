"""The Unix socket in the shared volume: one line of JSON each way, from launcher and trainers (see `holdfast_core.local`)."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

from holdfast_core.local import Attach, Corrupt, Hello, Message, Progress, Reserve, Restored, Sealed, Skipped, pack, unpack
from holdfast_core.wire import WireError

from .launcher import Launcher
from .trainers import Trainers

_LINE_LIMIT = 4 << 20  # bytes; log tails are in it
_PATH_LIMIT = 107  # bytes; the kernel's
_log = logging.getLogger(__name__)


class LocalSocket:
    """Accepts connections and hands the messages on."""

    def __init__(self, path: Path, launcher: Launcher, trainers: Trainers) -> None:
        self._path, self._launcher, self._trainers = path, launcher, trainers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        require_short(self._path)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=_LINE_LIMIT)
        os.chmod(self._path, 0o666)  # noqa: S103 - the trainer may run as another user; only this pod sees the volume

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while line := await reader.readline():
                await self._handle(writer, line)
        except (OSError, ValueError) as error:  # ValueError: a line too long, or WireError
            _log.warning("local connection dropped: %s", error)
        finally:
            self._connections.discard(writer)
            self._launcher.gone(writer)
            with suppress(OSError):
                writer.close()

    async def _handle(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        message, number = unpack(line)
        if isinstance(message, Hello):
            self._launcher.greeted(writer, message)
        elif isinstance(message, Attach | Reserve):
            await _send(writer, await self._trainers.request(message), number)
        elif isinstance(message, Sealed | Skipped | Progress | Restored | Corrupt):
            self._trainers.notice(message)
        else:
            raise WireError(f"{type(message).__name__} is not for the sidecar")


async def _send(writer: asyncio.StreamWriter, message: Message, number: int) -> None:
    writer.write(pack(message, number))
    await writer.drain()


def require_short(path: Path) -> None:
    """Raise OSError that says so if the kernel could not bind a socket there."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise OSError(f"socket path {path} is longer than {_PATH_LIMIT} bytes: choose a shorter shared_dir")
