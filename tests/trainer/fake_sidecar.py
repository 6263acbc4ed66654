"""A peer of the socket protocol for tests of launcher and trainer: records what it is told, sends what the test says."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from holdfast_core import local


class FakeSidecar:
    """Listens on a Unix socket until `close`. `answer` replies to requests of trainers."""

    def __init__(self, path: Path, answer: Callable[[local.Message], local.Message | None] | None = None) -> None:
        self.path = path
        self.messages: list[local.Message] = []
        self._answer = answer or (lambda message: None)
        self._news = threading.Condition()
        self._launcher: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._server.bind(str(path))
        self._server.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._read, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    self._take(connection, line)
            except OSError:
                return

    def _take(self, connection: socket.socket, line: bytes) -> None:
        message, number = local.unpack(line)
        with self._news:
            if isinstance(message, local.Hello):
                self._launcher = connection
            self.messages.append(message)
            self._news.notify_all()
        if number and (reply := self._answer(message)) is not None:
            connection.sendall(local.pack(reply, number))

    def send(self, message: local.Message) -> None:
        """To the launcher."""
        self.wait(lambda: self._launcher is not None)
        assert self._launcher is not None
        self._launcher.sendall(local.pack(message))

    def wait(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        with self._news:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds} s; last heard: {self.messages[-3:]}"
                self._news.wait(min(left, 0.1))

    @property
    def hello(self) -> local.Hello:
        """The newest one."""
        return next(m for m in reversed(self.messages) if isinstance(m, local.Hello))

    def of(self, kind: type) -> list[local.Message]:
        """All messages of a kind."""
        return [m for m in self.messages if isinstance(m, kind)]

    def wait_started(self, attempt: int) -> tuple[local.Process, ...]:
        self.wait(lambda: bool(self.of(local.Hello)) and self.hello.attempt == attempt and bool(self.hello.processes))
        return self.hello.processes

    def wait_ended(self, attempt: int) -> tuple[local.Process, ...]:
        self.wait_started(attempt)
        self.wait(lambda: self.hello.attempt == attempt and all(p.ended for p in self.hello.processes))
        return self.hello.processes

    def close(self) -> None:
        if self._server.fileno() < 0:
            return
        self.path.unlink(missing_ok=True)
        self._server.shutdown(socket.SHUT_RDWR)  # closing alone would leave the accepting thread listening
        self._threads[0].join(5)
        self._server.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads[1:]:
            thread.join(5)
        for connection in self._connections:
            connection.close()


def launch(attempt: int, processes: int = 1, **more: object) -> local.Launch:
    base = dict(world_size=processes, first_rank=0, master_addr="127.0.0.1", master_port=29500, node_rank=0, nodes=1)
    return local.Launch(attempt=attempt, processes=processes, **{**base, **more})  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def python_env(**more: str) -> dict[str, str]:
    """The environment of a subprocess, without what a test runner may have set for its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE", "PYTEST"))}
    return {**clean, **more}
