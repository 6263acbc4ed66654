"""One trainer process: start, logs, end; and its life beyond an attempt, if its script can be kept (see `line`)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from holdfast_core import local

from .line import Line
from .output import TAIL_LINES, Console, Stream

_CAUSE_FIRST_SECONDS = 0.2


@dataclass(frozen=True)
class Seat:
    """A process's place in the job. Only a process whose seat stays the same is kept for another attempt."""

    local_rank: int
    rank: int
    processes: int
    world_size: int
    node_rank: int

    @classmethod
    def of(cls, launch: local.Launch, local_rank: int) -> Seat:
        """The seat that a launch gives."""
        return cls(local_rank, launch.first_rank + local_rank, launch.processes, launch.world_size, launch.node_rank)


class RankProcess:
    """A process of an attempt, or of several. Its process group has its pid."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, console: Console, seat: Seat, env: Mapping[str, str], changed: Callable[[], None]
    ) -> None:
        self.seat = seat
        self.env = env
        self.pid = 0
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.resilient = False  # it can be asked to park
        self.parked = False  # its part in the attempt is over, though it lives
        self.kept = False  # it has been parked before
        self.answered = False  # it is at work in the attempt that it was sent into last
        self._asked = False  # to park
        self._failed: int | None = None  # the code with which it would have exited when it parked by itself
        self._loop = loop
        self._changed = changed
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        prefix = f"[rank {seat.rank}] "
        self.stdout = Stream(loop, console, prefix, self._tail)
        self.stderr = Stream(loop, console, prefix, self._tail)
        self.line = Line(loop, self._heard)

    @property
    def alive(self) -> bool:
        """Started and not reaped."""
        return self.pid > 0 and self.exit_code is None and self.signal is None

    @property
    def busy(self) -> bool:
        """Alive, and at work in its attempt."""
        return self.alive and not self.parked

    def started(self, pid: int) -> None:
        """It runs, and has its ends of pipes and line."""
        self.pid = pid
        self.stdout.hand_over()
        self.stderr.hand_over()
        self.line.hand_over()

    def park(self) -> bool:
        """Ask it to leave its attempt; whether it can be asked."""
        self._asked = self.busy and self.resilient and self.line.send("park")
        return self._asked

    def resume(self, env: Mapping[str, str]) -> bool:
        """Send it into another attempt; it is busy once it has answered. Whether that could be sent."""
        changes = {n: env.get(n) for n in sorted({*env, *self.env}) if env.get(n) != self.env.get(n)}
        self.env, self.answered = env, False
        self._tail.clear()  # that of the attempt before
        return self.alive and self.parked and self.line.send("resume", env=changes)

    def _heard(self, packet: dict[str, Any]) -> None:
        say = packet.get("say")
        if say == "joined":
            self.resilient = packet.get("pid") == self.pid  # not a child of it that inherited the line
            self.line.send("welcome" if self.resilient else "no")
        elif say == "left":
            self.resilient = False
        elif say == "parked" and self.resilient:
            self.stdout.drain()  # it said why before it parked
            self.stderr.drain()
            self.parked, self._failed = True, packet.get("code")
            if not self._asked:  # the death that it failed of is the news, and may take a moment to be seen
                self._loop.call_later(_CAUSE_FIRST_SECONDS, self._changed)
                return
        elif say == "back" and self.parked:
            self.parked, self.kept, self.answered, self._asked = False, True, True, False
        self._changed()

    def send(self, number: int) -> None:
        """Signal the whole group: data loader workers belong to it."""
        if self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def ended(self, status: int) -> None:
        """It was reaped with this wait status."""
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.line.close()
        for stream in (self.stdout, self.stderr):
            stream.drain()
            stream.close()

    def report(self) -> local.Process:
        """As the sidecar is told. The log's tail goes with the end. For its attempt, a parked one has ended."""
        code, number = self.exit_code, self.signal
        if self.alive and self.parked:
            code, number = self._failed, None if self._failed is not None else signal.SIGTERM
        tail = () if self.busy else tuple(self._tail)
        return local.Process(self.seat.local_rank, self.pid, code, number, tail, kept=self.alive and (self.kept or self.parked))

    def describe_end(self) -> str:
        """For the log."""
        if self.signal is not None:
            return f"rank {self.seat.rank} was ended by {signal.Signals(self.signal).name}"
        return f"rank {self.seat.rank} exited with code {self.exit_code}"
