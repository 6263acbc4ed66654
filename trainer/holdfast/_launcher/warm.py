"""The launcher's side of the warm standby: starts it, knows whether it is ready, asks it for ranks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .._log import note
from .command import PythonCommand
from .output import Console, Stream
from .spawn import spawn

# Variables that interpreter and libraries read when they start: with other values in the launch, only a cold start is right.
_READ_AT_START = ("PYTHON", "LD_", "TORCH_", "PYTORCH_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "HOLDFAST_PRELOAD")
_FORK_SECONDS = 5.0
_MAX_DEATHS = 5
WARM_UP_SECONDS = 20.0  # a standby that is still importing is ahead of a cold start, which would import the same


def read_at_start(new: Mapping[str, str], old: Mapping[str, str]) -> str:
    """The first variable that differs and that a process which has started with `old` cannot take over; empty if none does."""
    names = (n for n in sorted({*new, *old}) if n.startswith(_READ_AT_START) and new.get(n) != old.get(n))
    return next(names, "")


class NoStandby(Exception):
    """The rank must be started cold; the text is the reason."""


class Standby:
    """At most one standby process at a time, started again after it died."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        console: Console,
        command: PythonCommand | str,
        changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._console = console
        self._command = command
        self._changed = changed
        self._control: socket.socket | None = None
        self._settled = asyncio.Event()  # it is ready, or will never be
        self._ready = False
        self._deaths = 0
        self.pid = 0
        self.problem = command if isinstance(command, str) else ""
        if os.environ.get("HOLDFAST_STANDBY", "on").lower() in ("off", "0", "false"):
            self.problem = "switched off by HOLDFAST_STANDBY"

    @property
    def status(self) -> str:
        """For Hello: `ready`, `warming`, or why there is none."""
        return self.problem or ("ready" if self._ready else "warming")

    def start(self) -> None:
        """Start importing, unless the command rules a standby out."""
        if self.problem or isinstance(self._command, str) or self.pid:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        log = Stream(self._loop, self._console, "[standby] ", deque(maxlen=1))
        command = [self._command.interpreter, "-m", "holdfast._launcher.standby", str(theirs.fileno())]
        self._env = {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
        self.pid = spawn(command, self._env, log.write_end, log.write_end, keep=[theirs.fileno()])
        log.hand_over()
        theirs.close()
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._first_word)

    def _first_word(self) -> None:
        assert self._control is not None
        self._loop.remove_reader(self._control.fileno())
        try:
            answer = json.loads(self._control.recv(4096) or b"{}")
        except (OSError, ValueError):
            answer = {}
        if "ready" in answer:
            note(f"warm standby is ready after {answer['ready']:.1f} s")
            self._ready = True
            self._settled.set()
            self._changed()

    def ended(self) -> None:
        """Its process is gone: once it was ready another one is worth trying, else imports fail and the script will say why."""
        was_ready = self._ready
        self._forget()
        self._deaths += 1
        if was_ready and self._deaths < _MAX_DEATHS:
            self.start()
        else:
            why = f"died {self._deaths} times" if was_ready else "could not import what it preloads"
            self.problem = f"the standby {why} (see [standby] in the log)"
            self._settled.set()
            note(f"no warm standby: {self.problem}")

    def _forget(self) -> None:
        self.pid = 0
        self._ready = False
        self._settled.clear()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def kill(self) -> None:
        """End it; `ended` follows when it is reaped."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def settle(self) -> None:
        """Wait until it is ready or has failed, within WARM_UP_SECONDS."""
        if not self.problem:
            with suppress(TimeoutError):
                async with asyncio.timeout(WARM_UP_SECONDS):
                    await self._settled.wait()

    async def spawn(self, env: Mapping[str, str], stdout: int, stderr: int, line: int) -> int:
        """Pid of a new rank, which gets the three descriptors; raises NoStandby."""
        if self.problem or isinstance(self._command, str):
            raise NoStandby(self.problem)
        if not self._ready:
            raise NoStandby(f"it was not ready within {WARM_UP_SECONDS:.0f} s")
        self._check(env)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        try:
            answer = await self._ask(self._job(env), [stdout, stderr, line, go_read])
            if answer.get("pid", 0) <= 0:
                raise NoStandby(f"the standby refused: {answer.get('error', 'it could not fork')}")
            os.write(go_write, b"g")
        finally:
            os.close(go_read)
            os.close(go_write)
        return int(answer["pid"])

    def _check(self, env: Mapping[str, str]) -> None:
        if name := read_at_start(env, self._env):
            raise NoStandby(f"{name} differs from what it was when the standby started")

    def _job(self, env: Mapping[str, str]) -> bytes:
        assert isinstance(self._command, PythonCommand)
        job = {
            "target": self._command.target,
            "is_module": self._command.is_module,
            "arguments": list(self._command.arguments),
            "env": dict(env),
            "cwd": os.getcwd(),
            "launcher": os.getpid(),
            "unbuffered": self._command.unbuffered,
        }
        return json.dumps(job).encode()

    async def _ask(self, job: bytes, fds: list[int]) -> dict[str, Any]:
        assert self._control is not None
        try:
            socket.send_fds(self._control, [job], fds)
            async with asyncio.timeout(_FORK_SECONDS):
                data = await self._loop.sock_recv(self._control, 4096)
            answer: dict[str, Any] = json.loads(data or b"{}")
        except (OSError, ValueError) as error:
            self.kill()  # an answer that comes later would be taken for that of the next question
            raise NoStandby(f"the standby did not answer: {error or type(error).__name__}") from error
        return answer
