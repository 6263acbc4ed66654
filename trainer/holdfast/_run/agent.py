"""The operator's side of the sidecar's API, over its Unix socket: one event stream that never blocks, and short requests."""

from __future__ import annotations

import http.client
import select
import socket
import time

from holdfast_core import wire
from holdfast_core.messages import AgentState, Command, Inventory

from .._log import Once

_REQUEST_SECONDS = 10.0
_DIAL_SECONDS = 1.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("sidecar", timeout=_REQUEST_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Agent:
    """Latest state of a sidecar, kept fresh by `poll`; dials again after every loss."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: socket.socket | None = None
        self._rest = b""
        self._headers = False
        self._next_dial = 0.0
        self._once = Once()
        self.state: AgentState | None = None
        self.heard = 0.0  # monotonic
        self.dial_failures = 0

    @property
    def age(self) -> float | None:
        """Seconds since the last state, None before the first."""
        return time.monotonic() - self.heard if self.state else None

    def poll(self, seconds: float, also: int | None = None) -> bool:
        """Wait for news at most so long, or until the descriptor `also` can be read; returns whether there is a new state."""
        self._dial()
        stream = self._stream
        watched = [s for s in (stream, also) if s is not None]
        ready = select.select(watched, [], [], seconds)[0]
        return stream is not None and stream in ready and self._read(stream)

    def command(self, command: Command) -> None:
        """Give an order. A refusal or an unreachable sidecar shows in the next states: the planner orders again."""
        try:
            status, body = self._request("POST", "/v1/command", wire.dumps(command))
        except (OSError, http.client.HTTPException) as error:
            self._once.note("command", f"the sidecar did not take {command.kind!r}: {error or type(error).__name__}; trying on")
            return
        if status not in (200, 409):
            self._once.note(command.kind, f"the sidecar refused {command.kind!r} ({status}): {body.decode(errors='replace')}")

    def inventory(self) -> Inventory | None:
        """What the stores hold, or None if the sidecar did not answer."""
        try:
            status, body = self._request("GET", "/v1/inventory", None)
            return wire.loads(Inventory, body) if status == 200 else None
        except (OSError, http.client.HTTPException, wire.WireError):
            return None

    def close(self) -> None:
        """Hang up."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _dial(self) -> None:
        """HTTP/1.0, so that the answer is plain lines behind its headers."""
        if self._stream is not None or time.monotonic() < self._next_dial:
            return
        self._next_dial = time.monotonic() + 0.05
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(_DIAL_SECONDS)
            stream.connect(self._path)
            stream.sendall(b"GET /v1/events HTTP/1.0\r\nHost: sidecar\r\n\r\n")
        except OSError:
            stream.close()
            self.dial_failures += 1
            return
        stream.setblocking(False)
        self._stream, self._rest, self._headers, self.dial_failures = stream, b"", True, 0

    def _read(self, stream: socket.socket) -> bool:
        try:
            data = stream.recv(1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._rest += data
        if self._headers:
            _, found, rest = self._rest.partition(b"\r\n\r\n")
            if not found:
                return False
            self._headers, self._rest = False, rest
        *lines, self._rest = self._rest.split(b"\n")
        return bool(lines) and self._take(lines[-1])

    def _take(self, line: bytes) -> bool:
        try:
            self.state = wire.loads(AgentState, line)
        except wire.WireError as error:
            self._once.note("state", f"the sidecar speaks another version: {error}")
            return False
        self.heard = time.monotonic()
        return True
