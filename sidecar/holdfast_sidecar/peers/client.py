"""A connection to a peer, as its client: what it has, and its bytes, each piece checked on arrival."""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from holdfast_core import wire as documents
from holdfast_core.fastcopy import crc32
from holdfast_core.protection import Patience
from holdfast_core.timeline import Copy

from . import wire
from .channel import Access, Channel, Closed, Refused, Slow, Stalled
from .idle import Idle, Line
from .place import Fault, PeerError, PeerPlace
from .stop import Stop
from .sums import Check, Mismatch
from .wire import Answer, Part, Request

CONNECT = 1.5  # seconds
STALL = 10.0  # seconds without a byte
PATIENCE = 10.0  # seconds for a peer to come to our attempt
_AGAIN = 0.1
_ADVICE = {
    Fault.FENCED: "this pod is behind: the job has gone on without it",
    Fault.NOT_YET: "it does not take part in this attempt: look at its sidecar's log",
    Fault.REFUSED: "do all pods of the job run the same version, with the same Secret and peers.encryption?",
    Fault.LYING: "its memory or the network damages data: replace its node if this repeats",
    Fault.CORRUPT: "its memory damages data: replace its node if this repeats",
}


class Peer:
    """One connection. Use as a context manager. All calls block, with limits, and raise PeerError, or Stopped.

    It takes a connection from `idle` if there is one, and leaves it there in the end, if nothing is under way on it.
    A peer that sends less than `least` bytes a second is not waited for longer than one that is silent."""

    def __init__(
        self,
        place: PeerPlace,
        access: Access,
        job_uid: str,
        attempt: int,
        stop: Stop,
        stall: float,
        idle: Idle,
        least: float = 0.0,
    ) -> None:
        self.place, self.received = place, 0
        self._access, self._uid, self._attempt, self._stop, self._stall = access, job_uid, attempt, stop, stall
        self._idle, self._patience = idle, Patience(least, stall)
        self._line: Line | None = None
        self._busy = False  # something is under way on it
        self._copy = Copy(-1, 0)
        self._parts: deque[Part] = deque()
        self._check: Check
        self._at = self._frame_left = 0
        self._head = memoryview(bytearray(wire.FRAME.size))
        self._crc = memoryview(bytearray(wire.CRC.size))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        line = self._line
        if line is None or self._busy or self._stop.is_set:
            self.close()
            return
        self._stop.forget(line.channel.sock)
        self._idle.give(self.place, line)
        self._line = None

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._stop.forget(self._line.channel.sock)
            self._line.channel.close()
            self._line, self._busy = None, False

    # --- questions

    def info(self, copy: Copy, rank: int = -1, base: Copy | None = None) -> Answer:
        """Which images of the copy it has, how much of `rank`'s is as in `base`, which parities of the copy cover `rank`."""
        return self._ask(Request(wire.INFO, self._uid, self._attempt, copy, rank, base=base))

    def pull(self, copy: Copy, parts: Sequence[Part]) -> None:
        """Have the parts sent; `next_piece` then takes them, piece by piece, and `finish` ends it."""
        self._ask(Request(wire.PULL, self._uid, self._attempt, copy, parts=tuple(parts)))
        self._busy = True
        self._copy, self._parts, self._at, self._frame_left = copy, deque(parts), 0, 0

    def _ask(self, request: Request) -> Answer:
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._once(request)
            if not answer.fault:
                return answer
            if answer.fault != Fault.NOT_YET or time.monotonic() > deadline:
                raise self._fault(answer)
            self._stop.check()
            time.sleep(_AGAIN)

    def _once(self, request: Request) -> Answer:
        self._stop.check()
        try:
            if self._line is None and self._take():
                with suppress(Closed):  # it may have been given up in this moment
                    return self._exchange(request)
                self.close()
            if self._line is None:
                self._line = self._idle.new(self._connect())
            return self._exchange(request)
        except (Closed, Stalled, Refused, documents.WireError) as error:
            raise self._trouble(error) from error

    def _exchange(self, request: Request) -> Answer:
        self._busy = True
        self._live.send(request)
        answer = self._live.receive(Answer, wire.ANSWER_LIMIT)
        self._busy = False
        return answer

    def _take(self) -> bool:
        self._line = self._idle.take(self.place)
        if self._line is not None:
            self._stop.watch(self._line.channel.sock)
            self._line.channel.set_stall(self._stall)
        return self._line is not None

    def _connect(self) -> Channel:
        try:
            sock = socket.create_connection((self.place.host, self.place.port), CONNECT)
        except OSError as error:
            reason = error.strerror or str(error) or "no answer"
            where = f"{self.place.host}:{self.place.port}"
            raise PeerError(Fault.UNREACHABLE, f"no connection to {where}: {reason}", self.place) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            channel = self._access.to_server(sock, self._stall)
        except BaseException:
            sock.close()
            raise
        try:
            self._stop.watch(channel.sock)
        except BaseException:
            channel.close()
            raise
        return channel

    # --- bytes

    def next_piece(self, view: memoryview) -> int:
        """The next piece of the part that is being sent, not to reach behind its end, into `view`; returns its CRC-32."""
        self._stop.check()
        try:
            return self._piece(view)
        except Mismatch as error:
            raise self._lie(error) from error
        except (Closed, Stalled, Refused, documents.WireError) as error:
            raise self._trouble(error) from error

    def _piece(self, view: memoryview) -> int:
        if not self._at:
            self._check = self._table(self._parts[0].nbytes)
        done = 0
        while done < len(view):
            if not self._frame_left:
                self._frame_left = self._expect(wire.DATA, wire.WINDOW)
            count = min(len(view) - done, self._frame_left)
            self._fill(view[done : done + count])
            done, self._frame_left = done + count, self._frame_left - count
        self.received += done
        told = self._check.feed(view)
        self._at += done
        if self._at >= self._parts[0].nbytes:
            self._parts.popleft()
            self._at = 0
        return told

    def next_change(self, view: memoryview) -> bool:
        """By what the next piece differs from the base, into `view`; False: by nothing, which `view` is not told."""
        self._stop.check()
        try:
            return self._change(view)
        except (Closed, Stalled, Refused, documents.WireError) as error:
            raise self._trouble(error) from error

    def _change(self, view: memoryview) -> bool:
        kind, nbytes = self._frame()
        if kind not in (wire.SAME, wire.CHANGE) or nbytes != len(view):
            raise Refused(f"a frame of kind {kind} with {nbytes} bytes, expected {len(view)}")
        if kind == wire.SAME:
            self._patience = self._patience.after(0.0, nbytes)  # it looked at them all
            return False
        self._fill(self._crc)
        self._fill(view)
        self.received += nbytes
        if crc32(view) != wire.CRC.unpack(self._crc)[0]:
            raise self._lying()
        return True

    def _table(self, nbytes: int) -> Check:
        raw = bytearray(self._expect(wire.TABLE, wire.TABLE_LIMIT))
        self._fill(memoryview(raw))
        try:
            return Check(bytes(raw), nbytes)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _expect(self, wanted: int, limit: int) -> int:
        """The next frame's size, if it is of this kind."""
        kind, nbytes = self._frame()
        if kind != wanted or nbytes > limit:
            raise Refused(f"a frame of kind {kind} with {nbytes} bytes, expected kind {wanted}")
        return nbytes

    def _frame(self) -> tuple[int, int]:
        self._fill(self._head)
        kind, nbytes = wire.FRAME.unpack(self._head)
        if kind == wire.FAULT and nbytes <= wire.ANSWER_LIMIT:
            raw = bytearray(nbytes)
            self._live.fill(memoryview(raw))
            raise self._fault(documents.loads(Answer, bytes(raw)))
        return kind, nbytes

    def _fill(self, view: memoryview) -> None:
        """The part of a stream that is waited for now."""
        started, patience = time.monotonic(), self._patience
        self._live.fill(view, patience.left if patience.least else math.inf, patience.per_byte)
        self._patience = patience.after(time.monotonic() - started, len(view))
        if self._patience.is_out:
            raise Slow("it sends too slowly")

    def finish(self) -> None:
        """After the last piece: the peer confirms that nothing changed while it was sent."""
        try:
            self._expect(wire.END, 0)
            self._busy = False
        except (Closed, Stalled, Refused, documents.WireError) as error:
            raise self._trouble(error) from error

    def _lie(self, error: Mismatch) -> PeerError:
        """Ask whether the fault is in its memory. If it finds nothing there, it happened on the way, or it lies."""
        part, self._at = self._parts[0], 0
        self.close()
        self._ask(Request(wire.VERIFY, self._uid, self._attempt, self._copy, parts=(_section(part, error),)))
        return self._lying()

    def _lying(self) -> PeerError:
        return PeerError(Fault.LYING, f"it sent bytes that do not match their checksum: {_ADVICE[Fault.LYING]}", self.place)

    @property
    def _live(self) -> Channel:
        if self._line is None:
            raise Closed("not connected")
        return self._line.channel

    # --- trouble

    def _fault(self, answer: Answer) -> PeerError:
        kind = Fault(answer.fault) if answer.fault in Fault._value2member_map_ else Fault.REFUSED
        advice = f": {_ADVICE[kind]}" if kind in _ADVICE else ""
        return PeerError(kind, f"{answer.text}{advice}", self.place)

    def _trouble(self, error: Exception) -> Exception:
        """What a broken connection means. If it was us who broke it, nothing."""
        self.close()
        self._stop.check()
        if isinstance(error, Slow):
            rate = f"{self._patience.least / 1024:.1f} KiB a second for {self._stall:g} s"
            return PeerError(Fault.STALLED, f"it sent less than {rate}: its node or the network is too slow", self.place)
        if isinstance(error, Stalled):
            return PeerError(Fault.STALLED, f"it sent nothing for {self._stall:g} s: its node or the network hangs", self.place)
        if isinstance(error, Closed):
            return PeerError(Fault.UNREACHABLE, f"the connection broke: {error}", self.place)
        return PeerError(Fault.REFUSED, f"{error}: {_ADVICE[Fault.REFUSED]}", self.place)


def _section(part: Part, found: Mismatch) -> Part:
    return replace(part, start=part.start + found.start, nbytes=found.end - found.start)
