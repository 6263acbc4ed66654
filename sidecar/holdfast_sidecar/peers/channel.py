"""A connection between two peers that have shown that they belong to the same job.

Encrypted: TLS 1.3, both sides with the job's certificate. Plain: a handshake proves to each side that the other knows the job's
key (HMAC-SHA256 over fresh nonces, keyed by what is derived from `tls.key` of the job's Secret), and every document is sealed
with the key of the session. Bulk bytes then travel as they are: whoever can write into the connection can spoil them, which
their checksums find unless they are forged too, and whoever can listen can read them.

Sending: plain bytes go from the arena's file into the socket by `sendfile`, without being touched. Under TLS they are encrypted
by OpenSSL from the mapped memory. Kernel TLS, which would let `sendfile` encrypt, needs the kernel's `tls` module: it was
not there where this was measured, nor is it loaded by default on common nodes, so it is not used.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from holdfast_core import wire as documents
from holdfast_core.config import TLS_NAME, SidecarConfig

from .. import tls

HANDSHAKE = 5.0  # seconds
_MAGIC = b"HFPEER1\n"
_NONCE = 16  # bytes
_MAC = 32
_LENGTH = struct.Struct("<I")
_CLIENT, _SERVER = b"c", b"s"
T = TypeVar("T")


class Refused(Exception):
    """The other side does not belong to the job, or speaks something else."""


class Closed(Exception):
    """The other side is gone."""


class Stalled(Exception):
    """The other side was silent for too long."""


_RECORD = 16 << 10  # bytes of TLS


class Slow(Stalled):
    """The other side sends, but too slowly."""


class Channel:
    """Documents and bytes over one connection, each wait with a limit. Raises Closed, Stalled or Refused."""

    def __init__(self, sock: socket.socket, stall: float, session: bytes = b"", ours: bytes = b"") -> None:
        self.sock, self._session = sock, session
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._all = 0 if self._encrypted else socket.MSG_WAITALL
        self._more = 0 if self._encrypted else socket.MSG_MORE
        self._ours, self._theirs = ours, _SERVER if ours == _CLIENT else _CLIENT
        self._sent = self._received = 0
        self.set_stall(stall)

    def set_stall(self, seconds: float) -> None:
        """How long to wait for a byte, or for room for one."""
        if self._encrypted:
            self.sock.settimeout(seconds)
            return
        self.sock.settimeout(None)  # the kernel keeps the time, which costs no call of its own
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    # --- documents

    def send(self, message: object) -> None:
        """One document."""
        raw = documents.dumps(message)
        self._do(lambda: self.sock.sendall(_LENGTH.pack(len(raw)) + raw + self._mac(self._ours, self._sent, raw)))
        self._sent += 1

    def receive(self, kind: type[T], limit: int) -> T:
        """One document, not parsed unless it is sealed; raises WireError too."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > limit:
            raise Refused(f"a document of {length} bytes, {limit} are allowed")
        raw = self._exactly(length)
        if self._session and not hmac.compare_digest(self._exactly(_MAC), self._mac(self._theirs, self._received, raw)):
            raise Refused("a document is not sealed with the job's key")
        self._received += 1
        return documents.loads(kind, raw)

    def _mac(self, side: bytes, number: int, raw: bytes) -> bytes:
        return _mac(self._session, side, number.to_bytes(8, "little"), raw) if self._session else b""

    # --- bytes

    def fill(self, view: memoryview, seconds: float = math.inf, per_byte: float = 0.0) -> None:
        """Receive exactly so many bytes into the caller's memory in time, `seconds` and some for each byte; raises Slow too."""
        if self._do(lambda: self._fill(view, time.monotonic() + seconds, per_byte)) < len(view):
            raise Closed("it closed the connection")

    def _fill(self, view: memoryview, until: float, per_byte: float) -> int:
        """A tight loop: TLS hands out a record at a time. Whole records come fast enough not to ask for the time."""
        receive, flags, at, end, now = self.sock.recv_into, self._all, 0, len(view), time.monotonic
        while at < end:
            count = receive(view[at:], 0, flags)
            if not count:
                break
            at += count
            if count < _RECORD and at < end and now() > until + at * per_byte:
                raise Slow("it sends too slowly")
        return at

    def _exactly(self, count: int) -> bytes:
        raw = bytearray(count)
        self.fill(memoryview(raw))
        return bytes(raw)

    def send_bytes(self, raw: bytes | memoryview, *, more: bool = False) -> None:
        """`more`: other bytes follow at once, so don't send a packet for these."""
        self._do(lambda: self.sock.sendall(raw, self._more if more else 0))

    def send_file(self, descriptor: int, offset: int, view: memoryview) -> None:
        """Bytes of a file that are mapped at `view`."""
        if self._encrypted:
            self.send_bytes(view)
            return
        end = offset + len(view)
        while offset < end:
            sent = self._do(lambda: os.sendfile(self.sock.fileno(), descriptor, offset, end - offset))  # noqa: B023 - at once
            if not sent:
                raise Closed("the file was cut short")
            offset += sent

    def close(self) -> None:
        """Give the connection up."""
        self.sock.close()

    def _do(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (TimeoutError, BlockingIOError) as error:
            raise Stalled("no byte for too long") from error
        except ssl.SSLError as error:
            raise _explain(error) from error
        except OSError as error:
            raise Closed(error.strerror or str(error)) from error


class Access:
    """What this pod shows others, and asks of them. Files are read anew for each connection: a Secret may be replaced."""

    def __init__(self, config: SidecarConfig) -> None:
        self._folder, self._encrypted = Path(config.tls_dir), config.peers.encrypted
        self.contexts = [make(self._folder) for make in (tls.client_context, tls.server_context) if self._encrypted]

    def to_server(self, sock: socket.socket, stall: float) -> Channel:
        """As a client; raises Refused, Closed, Stalled."""
        return self._guarded(lambda: self._tls_client(sock, stall) if self._encrypted else self._plain_client(sock, stall))

    def to_client(self, sock: socket.socket, stall: float) -> Channel | None:
        """As a server; None if the other side left without a word, as those do who only look whether we are there."""
        sock.settimeout(HANDSHAKE)
        if not self._guarded(lambda: sock.recv(1, socket.MSG_PEEK)):
            return None
        return self._guarded(lambda: self._tls_server(sock, stall) if self._encrypted else self._plain_server(sock, stall))

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except TimeoutError as error:
            raise Stalled(f"no handshake within {HANDSHAKE:.0f} s") from error
        except ssl.SSLError as error:
            raise _explain(error) from error
        except OSError as error:
            raise Closed(error.strerror or str(error)) from error

    def _tls_client(self, sock: socket.socket, stall: float) -> Channel:
        sock.settimeout(HANDSHAKE)
        return Channel(self.contexts[0].wrap_socket(sock, server_hostname=TLS_NAME), stall)

    def _tls_server(self, sock: socket.socket, stall: float) -> Channel:
        return Channel(self.contexts[1].wrap_socket(sock, server_side=True), stall)

    def _plain_client(self, sock: socket.socket, stall: float) -> Channel:
        sock.settimeout(HANDSHAKE)
        mine = os.urandom(_NONCE)
        sock.sendall(_MAGIC + mine)
        theirs = _read(sock, _NONCE + _MAC)
        session = _mac(self._key(), b"session", mine, theirs[:_NONCE])
        if not hmac.compare_digest(theirs[_NONCE:], _mac(session, b"server")):
            raise Refused("it does not know the job's key")
        return Channel(sock, stall, session, _CLIENT)

    def _plain_server(self, sock: socket.socket, stall: float) -> Channel:
        if _read(sock, len(_MAGIC)) != _MAGIC:
            raise Refused("it does not speak our protocol")
        mine = os.urandom(_NONCE)
        session = _mac(self._key(), b"session", _read(sock, _NONCE), mine)
        sock.sendall(mine + _mac(session, b"server"))
        return Channel(sock, stall, session, _SERVER)

    def _key(self) -> bytes:
        return _mac((self._folder / "tls.key").read_bytes(), b"holdfast peers 1")


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(len(p).to_bytes(8, "little") + p for p in parts), hashlib.sha256).digest()


def _read(sock: socket.socket, count: int) -> bytes:
    """A handshake's bytes, all of them within its time: drop by drop is no way to hold a connection open."""
    raw, deadline = b"", time.monotonic() + HANDSHAKE
    while len(raw) < count:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        more = sock.recv(count - len(raw))
        if not more:
            raise Closed("it closed the connection")
        raw += more
    return raw


def _explain(error: ssl.SSLError) -> Exception:
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Closed("it closed the connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"its certificate is not the job's ({error.verify_message})")
    return Refused(f"TLS: {error.reason or error}")
