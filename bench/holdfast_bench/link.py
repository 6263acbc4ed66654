"""The driver's end of a worker: a process that holds one measured system and does one sample when it is told to.

One JSON object a line over a Unix socket, because launchers (dlrover-run) pass no file descriptors on. Neighbour: `worker` is
the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .environments import ROOT, Unavailable
from .processes import MARK, end_all, new_mark, remove
from .systems import System, by_name

SOCKET = "HOLDFAST_BENCH_SOCKET"
FOLDER = "HOLDFAST_BENCH_FOLDER"
_SHM = Path("/dev/shm")
_START_SECONDS = 120.0
_QUIT_SECONDS = 20.0


class Failed(Unavailable):
    """A worker died, answered with an error, or did not answer in time."""


class Worker:
    """A running measured system. Use as a context manager: leaving it ends the processes and removes their files."""

    def __init__(self, system: str, task: str, environ: Mapping[str, str] | None = None) -> None:
        self.system: System = by_name(system)
        self.system.environment.ensure()
        self.mark = new_mark()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.mark}-", dir=_SHM))
        self._stream: IO[str] | None = None
        self._socket: socket.socket | None = None
        command = self.system.command([str(ROOT / "bench" / "worker.py"), task, system])
        try:
            self._start(command, self._environ(environ or {}))
        except BaseException:
            self.close()
            raise

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join(str(ROOT / part) for part in ("bench", "core", "trainer", "examples/gpt"))
        ours = {"PYTHONPATH": path, MARK: self.mark, FOLDER: str(self.folder), SOCKET: str(self.folder / "socket")}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        return {**clean, **ours, **self.system.environ(self.mark, self.folder), **more}

    def _start(self, command: list[str], environ: dict[str, str]) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(environ[SOCKET])
            listener.listen(1)
            listener.settimeout(0.2)
            with open(self.folder / "log", "wb") as log:
                self._process = subprocess.Popen(
                    command,
                    env=environ,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            deadline = time.monotonic() + _START_SECONDS
            while True:
                try:
                    self._socket, _ = listener.accept()
                    break
                except TimeoutError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise Failed(f"{self.system.title} did not start: {self._last_words()}") from None
        self._stream = self._socket.makefile("rw", encoding="utf-8")

    @property
    def pid(self) -> int:
        """Of the process that was started: the worker, or its launcher."""
        return self._process.pid

    @property
    def dead(self) -> bool:
        """Whether its process is gone, or no longer answers."""
        return self._stream is None or self._process.poll() is not None

    def ask(self, verb: str, timeout: float = 120.0, **arguments: Any) -> dict[str, Any]:
        """Do one thing; raises Failed with the worker's error."""
        if self._stream is None or self._socket is None:
            raise Failed(f"{self.system.title} is not running")
        self._socket.settimeout(timeout)
        try:
            self._stream.write(json.dumps({"verb": verb, **arguments}) + "\n")
            self._stream.flush()
            line = self._stream.readline()
        except TimeoutError:
            self._stream.close()
            self._stream = None  # a late answer would be taken for the next one
            raise Failed(f"{self.system.title}: no answer to {verb!r} in {timeout:.0f} s") from None
        except OSError as error:
            raise Failed(f"{self.system.title} died at {verb!r}: {self._last_words()}") from error
        if not line:
            raise Failed(f"{self.system.title} died at {verb!r}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.system.title}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.poll()}"

    def close(self) -> None:
        """Ask it to leave, then make it; bounded."""
        with contextlib.suppress(Failed):
            self.ask("quit", timeout=_QUIT_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired, AttributeError):
            self._process.wait(5.0)
        for stream in (self._stream, self._socket):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent to a dead worker
                    stream.close()
        end_all(self.mark)
        with contextlib.suppress(subprocess.TimeoutExpired, AttributeError):
            self._process.wait(5.0)
        self._keep_log()
        remove(self.mark)

    def _keep_log(self) -> None:
        """The last log of each system stays, for whoever asks why."""
        with contextlib.suppress(OSError):
            kept = ROOT / "build" / "bench-logs"
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / "log", kept / f"{self.system.name}.log")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
