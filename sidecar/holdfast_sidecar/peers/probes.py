"""Which pods do not answer any more, as seen from here: a plain TCP connect to the peer port, again and again.

Silence here speaks for the node, not for its load (`holdfast_core.knock`). Our own load must not look like it: only questions
that were asked and got no answer count, and the kernel is asked again when time is up.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast_core.knock import answered

from .place import PeerPlace

EVERY = 0.5  # seconds
_TIMEOUT = 0.6
_SILENT = 1.0
_UNANSWERED = 2  # questions: one may get lost


@dataclass
class _Seen:
    """When a pod answered last, and how many questions it has not answered since."""

    answered: float
    unanswered: int = 0


class Probes:
    """Belongs to an event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[PeerPlace, _Seen] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, places: Sequence[PeerPlace]) -> None:
        """Look after these pods from now on, and no others. What is known of those that stay is kept."""
        self.close()
        now = self._clock()
        self._seen = {place: self._seen.get(place, _Seen(now)) for place in places}
        self._tasks = [asyncio.create_task(self._look_after(place, seen)) for place, seen in self._seen.items()]

    def silent(self) -> dict[int, float]:
        """Seconds since the last answer, by index, of those who were asked more than once since, and it is long."""
        now = self._clock()
        ages = {place.index: now - seen.answered for place, seen in self._seen.items() if seen.unanswered >= _UNANSWERED}
        return {index: age for index, age in ages.items() if age > _SILENT}

    def close(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _look_after(self, place: PeerPlace, seen: _Seen) -> None:
        while True:
            started = self._clock()
            answer = await _answers(place.host, place.port)
            if answer:
                seen.answered, seen.unanswered = self._clock(), 0
            elif answer is not None:
                seen.unanswered += 1
            await asyncio.sleep(max(0.0, EVERY - (self._clock() - started)))


async def _answers(host: str, port: int) -> bool | None:
    """None if the reason lies here (no file descriptors, for example)."""
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return None
    with sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except TimeoutError:
            return _answered_meanwhile(sock)
        except OSError as error:
            return answered(error.errno)
        return True


def _answered_meanwhile(sock: socket.socket) -> bool:
    """Our event loop may have been held up, and the answer be there."""
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        return answered(failure) is True
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
