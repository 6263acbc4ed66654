"""Connections that wait for their next use: a round a second must not cost a handshake a round on both sides."""

from __future__ import annotations

import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from .channel import Channel
from .place import PeerPlace

AGE = 30.0  # seconds, then it is made anew: with the certificates of then, and before the server gives it up


@dataclass(frozen=True)
class Line:
    """A connection, and when it was made."""

    channel: Channel
    made: float


class Idle:
    """Any thread may call. Nobody uses a connection that is in here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: dict[PeerPlace, list[Line]] = defaultdict(list)

    def new(self, channel: Channel) -> Line:
        """One that was just made."""
        return Line(channel, self._clock())

    def take(self, place: PeerPlace) -> Line | None:
        """One to this pod, if there is one that still stands."""
        while True:
            with self._lock:
                line = self._lines[place].pop() if self._lines[place] else None
            if line is None or self._is_good(line):
                return line
            line.channel.close()

    def _is_good(self, line: Line) -> bool:
        """What can be read while nothing was asked for is its end."""
        return self._clock() - line.made < AGE and not _readable(line.channel)

    def give(self, place: PeerPlace, line: Line) -> None:
        """Keep one for the next; nothing is under way on it."""
        with self._lock:
            self._lines[place].append(line)

    def clear(self) -> None:
        """Hang up on all."""
        with self._lock:
            lines = [line for of_place in self._lines.values() for line in of_place]
            self._lines.clear()
        for line in lines:
            line.channel.close()


def _readable(channel: Channel) -> bool:
    look = select.poll()
    look.register(channel.sock, select.POLLIN)
    return bool(look.poll(0))
