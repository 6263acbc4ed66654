"""The line between the launcher and one trainer process: a socket pair that only that process has, one JSON object a packet.

    process -> launcher   joined {pid}      it runs `holdfast.resilient` and can be kept alive through a failure
                          parked {code}     it has left the attempt and touches no snapshot; code: it failed by itself
                          back              it is at work in the attempt that it was sent
                          left              it is an ordinary process again
    launcher -> process   welcome, or no    the answer to joined
                          park              leave the attempt
                          resume {env}      go on with these variables; null removes one

The process's end is `_rebuild.control`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ENV = "HOLDFAST_CONTROL"  # number of the process's descriptor
MAX_PACKET = 1 << 20
_BUFFER = 4 << 20


class Line:
    """The launcher's end. `remote` is the process's; close it here, by `hand_over`, once the process has it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._heard = heard
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._socket.setblocking(False)
        self.remote = theirs.detach()
        self._open = True
        loop.add_reader(self._socket.fileno(), self._ready)

    def hand_over(self) -> None:
        """The process has its end: give up ours."""
        os.close(self.remote)

    def send(self, say: str, **more: Any) -> bool:
        """Whether the packet is on its way."""
        try:
            self._socket.send(json.dumps({"say": say, **more}).encode())
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _ready(self) -> None:
        with suppress(BlockingIOError, ConnectionError, ValueError):
            data = self._socket.recv(MAX_PACKET)
            if not data:
                self.close()
                return
            self._heard(json.loads(data))
