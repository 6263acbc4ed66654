"""Starts sidecars by fork from an interpreter that has imported them: real processes, a second each saved.

Run as a program it serves requests, one JSON line each; `Zygote` and `Forked` are the other side.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def serve() -> None:
    """The program: fork on request, reap on request."""
    import s3fs  # noqa: F401
    from holdfast_sidecar import __main__, app  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        answer = _fork(request) if "log" in request else _reap(request["pid"])
        print(json.dumps(answer), flush=True)


def _fork(request: dict[str, object]) -> dict[str, int]:
    pid = os.fork()
    if pid:
        return {"pid": pid}
    from holdfast_sidecar.__main__ import main

    log = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type]
    os.chdir("/")
    code = 1
    try:
        main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def _reap(pid: int) -> dict[str, int | None]:
    done, status = os.waitpid(pid, os.WNOHANG)
    return {"code": os.waitstatus_to_exitcode(status) if done else None}


class Zygote:
    """The other side, shared by all tests of a session."""

    _shared: Zygote | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    @classmethod
    def shared(cls) -> Zygote:
        """Made at first use."""
        cls._shared = cls._shared or cls()
        return cls._shared

    @classmethod
    def close_shared(cls) -> None:
        """At the end of the session."""
        if cls._shared is not None:
            process, cls._shared = cls._shared._process, None
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            process.wait(10)
            process.stdout.close()

    def ask(self, **request: object) -> dict[str, int]:
        """One request, one answer."""
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]


class Forked:
    """A started sidecar; looks like `subprocess.Popen`."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._zygote = Zygote.shared()
        self.pid = self._zygote.ask(env=environment, log=str(log))["pid"]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.returncode is None:
            self.returncode = self._zygote.ask(pid=self.pid)["code"]
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("sidecar", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    serve()
