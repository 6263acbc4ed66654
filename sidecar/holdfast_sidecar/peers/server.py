"""The peer server: hands out images and parity to the job's other pods. Threads and blocking sockets: bytes are all it does."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from holdfast_core import wire as documents
from holdfast_core.arena import ArenaError
from holdfast_core.config import SidecarConfig
from holdfast_core.fastcopy import crc32
from holdfast_core.manifest import CorruptShard
from holdfast_core.protection import connections
from holdfast_core.timeline import Copy

from . import wire
from .aside import step_aside
from .channel import Access, Channel, Closed, Refused, Stalled
from .deltas import Changes
from .holdings import Holdings, ImageBytes, Readable, read, same_bytes, verify
from .place import Fault
from .stop import shut
from .sums import table
from .throttle import Throttle
from .wire import Answer, Part, Request

STALL = 60.0  # seconds that a client may take or ask nothing: in lockstep with a slow pod it does not read from the others
_BACKLOG = 1024  # connections: all ranks of a large group dial at the same moment
_log = logging.getLogger(__name__)


class _Unfit(Exception):
    """A request that can't be served: said to the client, and the connection stays."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(fault, text)


class PeerServer:
    """Serves until closed. `attempt` tells the one that is on."""

    def __init__(self, config: SidecarConfig, access: Access, holdings: Holdings, attempt: Callable[[], int]) -> None:
        self._config, self._access, self._holdings, self._attempt = config, access, holdings, attempt
        self._throttle = Throttle(config.peers.bandwidth)
        self._most, self._window = connections(config.peers, config.processes), wire.WINDOW
        self._listener: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.sent = 0  # bytes of images and parity

    def start(self) -> None:
        """Listen; raises OSError."""
        self._listener = socket.create_server(("", self._config.peer_port), backlog=_BACKLOG)
        threading.Thread(target=self._accept, args=(self._listener,), name="peer-server", daemon=True).start()

    def close(self) -> None:
        """Hang up on everybody."""
        listener, self._listener = self._listener, None
        if listener is not None:
            shut(listener)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            for sock in self._clients:
                shut(sock)

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                sock, address = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return
                _log.warning("peer server: %s", error)  # out of descriptors, for example
                threading.Event().wait(0.1)
                continue
            self._begin(sock, address[0])

    def _begin(self, sock: socket.socket, address: str) -> None:
        with self._lock:
            if len(self._clients) >= self._most or self._listener is None:
                sock.close()
                return
            self._clients.add(sock)
        try:
            threading.Thread(target=self._serve, args=(sock, address), name="peer", daemon=True).start()
        except RuntimeError:  # no more threads
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        with self._lock:
            self._clients.discard(sock)
        sock.close()

    # --- a connection

    def _serve(self, sock: socket.socket, address: str) -> None:
        step_aside()
        held = sock
        try:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = self._access.to_client(sock, STALL)
            if channel is not None:
                held = channel.sock
                self._shook_hands(sock, held)
                self._converse(channel)
        except (Refused, documents.WireError) as error:
            _log.warning("a connection from %s was refused: %s", address, error)
        except (Closed, Stalled) as error:
            _log.debug("connection from %s: %s", address, error)
        except Exception:  # noqa: BLE001 - a defect costs this connection, not the server
            _log.exception("connection from %s", address)
        finally:
            self._end(held)
            sock.close()

    def _shook_hands(self, raw: socket.socket, sock: socket.socket) -> None:
        """Who closes the server meanwhile does not reach this connection: TLS has taken the socket over."""
        with self._lock:
            self._clients.discard(raw)
            if self._listener is None:
                raise Closed("the server is closed")
            self._clients.add(sock)

    def _converse(self, channel: Channel) -> None:
        while True:
            request = channel.receive(Request, wire.REQUEST_LIMIT)
            try:
                self._obey(channel, request)
            except _Unfit as error:
                channel.send(error.answer)

    def _obey(self, channel: Channel, request: Request) -> None:
        self._require_ours(request)
        if request.kind == wire.INFO:
            try:
                images = self._holdings.images(request.copy)
            except ArenaError as error:
                raise _Unfit(Fault.LACKS, str(error)) from error
            parities = self._holdings.parities(request.copy, request.rank)
            channel.send(Answer(images=images, parities=parities, **self._before(request)))
        elif request.kind == wire.PULL:
            senders = [self._sender(request, part) for part in request.parts]
            channel.send(Answer())
            self._stream(channel, senders)
        elif request.kind == wire.VERIFY:
            for part in request.parts:
                self._verify(request.copy, part)
            channel.send(Answer())
        else:
            raise _Unfit(Fault.REFUSED, f"it does not know requests of the kind {request.kind!r}")

    def _require_ours(self, request: Request) -> None:
        now = self._attempt()
        if request.job_uid != self._config.job_uid:
            raise _Unfit(Fault.REFUSED, f"it belongs to job {self._config.job_uid}")
        if request.attempt < now:
            raise _Unfit(Fault.FENCED, f"it is in attempt {now}, attempt {request.attempt} is over")
        if request.attempt > now:
            raise _Unfit(Fault.NOT_YET, f"it is in attempt {now}, not yet in {request.attempt}")

    def _verify(self, copy: Copy, part: Part) -> None:
        try:
            verify(self._holdings.open(copy, part), part.start, part.start + part.nbytes)
        except (ArenaError, CorruptShard) as error:
            raise self._unfit(copy, part, error) from error

    def _unfit(self, copy: Copy, part: Part, error: Exception) -> _Unfit:
        whose = f"rank {part.rank}: "
        if not isinstance(error, CorruptShard):
            return _Unfit(Fault.LACKS, f"{whose}{error}")
        self._holdings.forget(copy, part, str(error))
        return _Unfit(Fault.CORRUPT, f"{whose}{error}")

    # --- bytes

    def _sender(self, request: Request, part: Part) -> Callable[[Channel], None]:
        """What sends a part, if it is there."""
        if part.base is None:
            return partial(self._send_part, request, part, self._open(request.copy, part))
        base, new = (self._image(copy, part) for copy in (part.base, request.copy))
        return partial(self._send_changes, request, part, Changes(base, new))

    def _open(self, copy: Copy, part: Part) -> Readable:
        try:
            return self._holdings.open(copy, part)
        except (ArenaError, CorruptShard) as error:
            raise self._unfit(copy, part, error) from error

    def _image(self, copy: Copy, part: Part) -> ImageBytes:
        try:
            return self._holdings.image(copy, part.rank)
        except (ArenaError, CorruptShard) as error:
            raise self._unfit(copy, part, error) from error

    def _before(self, request: Request) -> dict[str, Any]:
        """What an answer says of the base."""
        base = request.base
        if base is None:
            return {}
        return {"same": self._same(request.rank, request.copy, base), "before": self._holdings.images(base)}

    def _same(self, rank: int, copy: Copy, base: Copy) -> int:
        try:
            return same_bytes(self._holdings.image(copy, rank).chunks, self._holdings.image(base, rank).chunks)
        except (ArenaError, CorruptShard):
            return 0  # then it is asked for all, and told why it can't have it

    def _stream(self, channel: Channel, senders: list[Callable[[Channel], None]]) -> None:
        try:
            for send in senders:
                send(channel)
        except _Unfit as error:
            raw = documents.dumps(error.answer)
            channel.send_bytes(wire.FRAME.pack(wire.FAULT, len(raw)) + raw)
        else:
            channel.send_bytes(wire.FRAME.pack(wire.END, 0))

    def _send_part(self, request: Request, part: Part, readable: Readable, channel: Channel) -> None:
        end = part.start + part.nbytes
        try:
            readable.require_unchanged()
            raw = table(readable.chunks, partial(read, readable), part.start, end)
            channel.send_bytes(wire.FRAME.pack(wire.TABLE, len(raw)) + raw, more=True)
            at = part.start
            while at < end:
                self._require_ours(request)
                until = min(end, at + self._portion())
                self._send_window(channel, readable, at, until)
                readable.require_unchanged()
                at = until
        except (ArenaError, CorruptShard) as error:
            raise self._unfit(request.copy, part, error) from error

    def _portion(self) -> int:
        """Bytes to send at a time, by how many share the line now."""
        return self._throttle.step(self._window, len(self._clients))

    def _send_window(self, channel: Channel, readable: Readable, at: int, end: int) -> None:
        self._throttle.take(end - at)
        channel.send_bytes(wire.FRAME.pack(wire.DATA, end - at), more=True)
        mended = readable.mended(at, end)
        if mended is None:
            channel.send_file(readable.fileno(), readable.offset + at, readable.view[at:end])
        else:
            channel.send_bytes(mended)
        self.sent += end - at

    def _send_changes(self, request: Request, part: Part, changes: Changes, channel: Channel) -> None:
        try:
            for nbytes, change in changes.pieces(part.start, part.start + part.nbytes):
                self._require_ours(request)
                changes.require_unchanged()
                if change is None:
                    channel.send_bytes(wire.FRAME.pack(wire.SAME, nbytes), more=True)
                    continue
                self._send_change(channel, change)
        except (ArenaError, CorruptShard) as error:
            raise self._unfit(changes.suspect, part, error) from error

    def _send_change(self, channel: Channel, change: memoryview) -> None:
        channel.send_bytes(wire.FRAME.pack(wire.CHANGE, len(change)) + wire.CRC.pack(crc32(change)), more=True)
        portion = self._portion()
        for at in range(0, len(change), portion):
            raw = change[at : at + portion]
            self._throttle.take(len(raw))
            channel.send_bytes(raw)
            self.sent += len(raw)
