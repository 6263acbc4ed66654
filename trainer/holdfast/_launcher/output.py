"""Logs of the trainer processes: read at once, so that no process ever waits for its pipe; passed on line by line with a
prefix; the last lines kept, to explain an exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from collections import deque

TAIL_LINES = 40
_TAIL_WIDTH = 400  # characters of a line that are kept in the tail
_MAX_LINE = 16 << 10  # bytes: a longer one (a progress bar without newlines) is passed on in pieces
_MAX_BACKLOG = 4 << 20  # bytes waiting for a container log that does not take them
_PIPE_BYTES = 1 << 20
_PIPE_BUF = 4096  # what a pipe that is writable takes without blocking
_RETRY_SECONDS = 0.02


class Console:
    """The container's log. Writing never blocks: what it does not take waits, and above a limit is dropped and counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int = 1) -> None:
        self._loop = loop
        self._fd = fd
        self._backlog: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    def write(self, line: bytes) -> None:
        """Pass on one line, newline included."""
        if self._bytes + len(line) > _MAX_BACKLOG:
            self._dropped += 1
            return
        if self._dropped:
            notice = b"holdfast: %d lines of log were dropped: the container's log was not read\n" % self._dropped
            self._dropped = 0
            self._append(notice)
        self._append(line)
        if self._timer is None:
            self._flush()

    def _append(self, line: bytes) -> None:
        for start in range(0, len(line), _PIPE_BUF):
            self._backlog.append(line[start : start + _PIPE_BUF])
        self._bytes += len(line)

    def _flush(self) -> None:
        self._timer = None
        try:
            while self._backlog and select.select([], [self._fd], [], 0)[1]:
                self._write_one()
        except OSError:  # nobody will ever read it: the trainer must not suffer
            self._backlog.clear()
            self._bytes = 0
        if self._backlog:
            self._timer = self._loop.call_later(_RETRY_SECONDS, self._flush)
        else:
            self._idle.set()

    def _write_one(self) -> None:
        chunk = self._backlog[0]
        written = os.write(self._fd, chunk)
        self._bytes -= written
        if written == len(chunk):
            self._backlog.popleft()
        else:
            self._backlog[0] = chunk[written:]

    async def drained(self, seconds: float) -> None:
        """Wait until all is written, at most so long."""
        self._idle.clear()
        if self._backlog:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._idle.wait()


class Stream:
    """One pipe of a process. `write_end` is the process's; close it here once the process has it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, console: Console, prefix: str, tail: deque[str]) -> None:
        self._loop = loop
        self._console = console
        self._prefix = prefix.encode()
        self._tail = tail
        self._rest = b""
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._open = True
        os.set_blocking(self._read_end, False)
        with contextlib.suppress(OSError):  # above the user's limit: the default size does as well
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        loop.add_reader(self._read_end, self._ready)

    def hand_over(self) -> None:
        """The process has its end: give up ours, so that its death is an end of file."""
        os.close(self.write_end)

    def drain(self) -> None:
        """Read what is there now. After the process's death that is all it wrote."""
        while self._open and self._ready():
            pass

    def close(self) -> None:
        """Stop reading, and pass on an unfinished line."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            if self._rest:
                self._line(self._rest + b"\n")
                self._rest = b""

    def _ready(self) -> bool:
        try:
            data = os.read(self._read_end, 65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line + b"\n")
        while len(rest) > _MAX_LINE:
            self._line(rest[:_MAX_LINE] + b"\n")
            rest = rest[_MAX_LINE:]
        self._rest = rest
        return True

    def _line(self, line: bytes) -> None:
        self._console.write(self._prefix + line)
        self._tail.append(line.decode(errors="replace").rstrip("\r\n")[-_TAIL_WIDTH:])
