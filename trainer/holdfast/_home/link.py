"""A trainer's connection to its sidecar: one JSON line a message (holdfast_core.local).

It has no thread of its own, but several may call. Notices are queued and written when the socket takes them; a dead sidecar
costs a step at most one failed connect to a Unix socket, and what is queued then is dropped except for what is said anew after
a reconnect. Requests wait, with a bound.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from holdfast_core import local
from holdfast_core.wire import WireError

from ..errors import AgentUnreachable, HoldfastError

_CONNECT_SECONDS = 0.02
_RETRY_SECONDS = 0.25
_MAX_QUEUED = 256 << 10  # bytes


class AgentRefused(HoldfastError):
    """The sidecar answered a request with an error."""


class Link:
    """Connects on first use and again after each loss, introducing itself with `Attach`."""

    def __init__(self, path: str, attach: local.Attach) -> None:
        self._path = path
        self._attach = attach
        self._socket: socket.socket | None = None
        self._next_try = 0.0
        self._id = 0
        self._out = bytearray()
        self._in = bytearray()
        self._newest: bytes | None = None  # the last Sealed: a restarted sidecar is told again
        self._lock = threading.RLock()  # the training loop and the copy thread

    def notify(self, message: local.Message) -> None:
        """Queue a notice and send what can be sent now. Never raises, never waits."""
        line = local.pack(message)
        with self._lock:
            if isinstance(message, local.Sealed):
                self._newest = line
            if self._connected():
                self._out += line
                self._send()

    def request(self, message: local.Message, timeout: float, connect_timeout: float) -> local.Message:
        """Ask and wait for the answer. Raises AgentUnreachable after the time-outs, AgentRefused for an Error."""
        with self._lock:
            return self._request(message, timeout, connect_timeout)

    def _request(self, message: local.Message, timeout: float, connect_timeout: float) -> local.Message:
        start = time.monotonic()
        while True:
            if self._connected(now=True, introduce=not isinstance(message, local.Attach)):
                answer = self._ask(message, start + timeout)
                if answer is not None:
                    return answer
            wait = timeout if self._socket else connect_timeout
            if time.monotonic() - start >= wait:
                raise AgentUnreachable(
                    f"no answer to {type(message).__name__} from the sidecar at {self._path} within {wait:.3g} s; "
                    "is the sidecar container running?"
                )
            time.sleep(0.02)

    def close(self, timeout: float) -> None:
        """Flush what is queued, at most `timeout` seconds, and hang up."""
        with self._lock:
            self._close(timeout)

    def _close(self, timeout: float) -> None:
        if self._socket is not None and self._out:
            with contextlib.suppress(OSError):
                self._socket.settimeout(timeout)
                self._socket.sendall(self._out)
        self._drop()

    def _ask(self, message: local.Message, deadline: float) -> local.Message | None:
        self._id += 1
        wanted = self._id
        self._out += local.pack(message, wanted)
        while self._socket is not None:
            self._send()
            answer = self._receive(wanted, deadline)
            if answer is not None:
                return answer
            if time.monotonic() >= deadline:
                return None
        return None

    def _receive(self, wanted: int, deadline: float) -> local.Message | None:
        """The answer, or None if the time is up or the connection is gone."""
        while self._socket is not None:
            line, found, rest = self._in.partition(b"\n")
            if found:
                self._in = rest
                answer = self._match(bytes(line), wanted)
                if answer is not None:
                    return answer
                continue
            if not self._read(max(0.001, min(0.1, deadline - time.monotonic()))):
                return None
        return None

    def _match(self, line: bytes, wanted: int) -> local.Message | None:
        try:
            message, number = local.unpack(line)
        except WireError:
            self._drop()  # the stream is out of step: start again
            return None
        if number != wanted:
            return None  # an answer that nobody waits for any more
        if isinstance(message, local.Error):
            raise AgentRefused(message.message)
        return message

    def _read(self, seconds: float) -> bool:
        assert self._socket is not None
        try:
            self._socket.settimeout(seconds)
            data = self._socket.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self._drop()
        self._in += data
        return bool(data)

    def _connected(self, now: bool = False, introduce: bool = True) -> bool:
        if self._socket is not None:
            self._drain()
        if self._socket is None and (now or time.monotonic() >= self._next_try):
            self._connect(introduce)
        return self._socket is not None

    def _connect(self, introduce: bool) -> None:
        self._next_try = time.monotonic() + _RETRY_SECONDS
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_SECONDS)
            connection.connect(self._path)
        except OSError:
            connection.close()
            return
        self._socket = connection
        self._in.clear()
        self._out.clear()
        if introduce:
            self._id += 1
            self._out += local.pack(self._attach, self._id) + (self._newest or b"")

    def _drain(self) -> None:
        """Throw away answers that came too late (whole lines only), and notice that the other side hung up."""
        while self._socket is not None:
            self._socket.setblocking(False)
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._drop()
            self._in += data
        del self._in[: self._in.rfind(b"\n") + 1]

    def _send(self) -> None:
        if self._socket is None:
            return
        self._socket.setblocking(False)
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            if len(self._out) > _MAX_QUEUED:  # it stopped reading: a new connection is cheaper than its backlog
                self._drop()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._out.clear()
        self._in.clear()
