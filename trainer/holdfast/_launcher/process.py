"""One trainer process: start, logs, end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from contextlib import suppress

from holdfast_core import local

from .output import TAIL_LINES, Console, Stream


class RankProcess:
    """A process of the current attempt. Its process group has its pid."""

    def __init__(self, loop: asyncio.AbstractEventLoop, console: Console, local_rank: int, rank: int) -> None:
        self.local_rank = local_rank
        self.rank = rank
        self.pid = 0
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        prefix = f"[rank {rank}] "
        self.stdout = Stream(loop, console, prefix, self._tail)
        self.stderr = Stream(loop, console, prefix, self._tail)

    @property
    def alive(self) -> bool:
        """Started and not reaped."""
        return self.pid > 0 and self.exit_code is None and self.signal is None

    def started(self, pid: int) -> None:
        """It runs, and has its pipes."""
        self.pid = pid
        self.stdout.hand_over()
        self.stderr.hand_over()

    def send(self, number: int) -> None:
        """Signal the whole group: data loader workers belong to it."""
        if self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def ended(self, status: int) -> None:
        """It was reaped with this wait status."""
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        for stream in (self.stdout, self.stderr):
            stream.drain()
            stream.close()

    def report(self) -> local.Process:
        """As the sidecar is told. The log's tail goes with the end."""
        tail = () if self.alive else tuple(self._tail)
        return local.Process(self.local_rank, self.pid, self.exit_code, self.signal, tail)

    def describe_end(self) -> str:
        """For the log."""
        if self.signal is not None:
            return f"rank {self.rank} was ended by {signal.Signals(self.signal).name}"
        return f"rank {self.rank} exited with code {self.exit_code}"
