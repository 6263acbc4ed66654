"""Real sidecar processes, with a launcher and trainers that speak the real protocols and write real arenas."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from holdfast_core import arena, local, wire
from holdfast_core.config import CONFIG_ENV, SOCKET, TLS_NAME, SidecarConfig
from holdfast_core.messages import AgentState, Command, Inventory, Member
from ports import free_port  # noqa: F401 - handed on

from .images import map_file, seal_content
from .zygote import Forked

UID = "0b5e6d2e-6f5c-4c4e-9a63-0f6c1f6f6c1f"


@contextlib.contextmanager
def tmpfs(mount: Path, size: str) -> Iterator[Path]:
    """A small volume of its own; skips the test where none may be mounted."""
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def eventually(check: Callable[[], object], seconds: float = 10.0, what: str = "") -> object:
    """The first true value of `check`; bounded."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if value := check():
                return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or check}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("sidecar", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _TlsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=TLS_NAME)


def client_context(folder: Path, *, certificate: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if certificate:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


class Sidecar:
    """One process of `python -m holdfast_sidecar`, and its API."""

    def __init__(self, config: SidecarConfig, environment: dict[str, str] | None = None, log: Path | None = None) -> None:
        self.config = config
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | (environment or {})
        self._log = log or Path(config.shared_dir).with_suffix(".log")
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._context: ssl.SSLContext | None = None
        self._kept: http.client.HTTPConnection | None = None

    def start(self, *, healthy: bool = True, fresh: bool = False) -> Sidecar:
        """`fresh`: by a new interpreter, as in a container, instead of a fork of one that has imported all."""
        environment = {**self._environment, CONFIG_ENV: wire.dumps(self.config).decode()}
        if fresh:
            with self._log.open("ab") as log:
                command = [sys.executable, "-m", "holdfast_sidecar"]
                self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log, cwd="/")
        else:
            self.process = Forked(environment, self._log)
        if healthy:
            eventually(lambda: self.health()[0] == 200, 15, f"healthy: {self.log()}")
        return self

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def _hang_up(self) -> None:
        if self._kept:
            self._kept.close()
            self._kept = None

    def kill(self) -> None:
        self._hang_up()
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def terminate(self, seconds: float = 30) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        self._hang_up()
        if self.process and self.process.poll() is None:
            self.kill()

    # --- API

    def connection(self) -> http.client.HTTPConnection:
        if not self.config.tls_dir:
            return _UnixConnection(f"{self.config.shared_dir}/run/api.sock")
        self._context = self._context or client_context(Path(self.config.tls_dir))
        return _TlsConnection("127.0.0.1", self.config.api_port, timeout=10, context=self._context)

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Over a connection that is kept: a handshake for each look would cost more than the sidecar's own work."""
        connection, self._kept = self._kept or self.connection(), None
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        self._kept = connection
        return answer

    def state(self) -> AgentState:
        return wire.loads(AgentState, self._request("GET", "/v1/state")[1])

    def inventory(self) -> Inventory:
        return wire.loads(Inventory, self._request("GET", "/v1/inventory")[1])

    def send(self, command: Command) -> tuple[int, dict[str, object]]:
        status, body = self._request("POST", "/v1/command", wire.dumps(command))
        return status, json.loads(body)

    def order(self, command: Command) -> None:
        status, body = self.send(command)
        assert status == 200, (status, body)

    def health(self) -> tuple[int, str]:
        return self._plain("/healthz")

    def metrics(self) -> str:
        return self._plain("/metrics")[1]

    def _plain(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.config.metrics_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    @property
    def member(self) -> Member:
        c = self.config
        return Member(c.index, c.pod, "127.0.0.1", c.api_port, c.first_rank, c.processes, peer_port=c.peer_port)


class Line:
    """A connection to the local socket: requests and notices, replies by id."""

    def __init__(self, shared: str | Path, seconds: float = 5) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        try:
            eventually(lambda: self._socket.connect(str(Path(shared) / SOCKET)) is None, seconds, "local socket")
        except AssertionError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def send(self, message: local.Message, number: int = 0) -> None:
        self._socket.sendall(local.pack(message, number))

    def receive(self) -> tuple[local.Message, int]:
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        return local.unpack(line)

    def ask(self, message: local.Message) -> local.Message:
        self.send(message, 7)
        reply, number = self.receive()
        assert number == 7
        return reply

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


class FakeLauncher:
    """Keeps a list of processes as ordered and tells it; reconnects like the real one."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._shared, self._processes = sidecar.config.shared_dir, sidecar.config.processes
        self.attempt = 0
        self.processes: dict[int, local.Process] = {}
        self.orders: list[local.Message] = []
        self.finished: int | None = None
        self._line: Line | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError, AssertionError, ValueError):
                self._line = Line(self._shared, 0.3)
                self._line._socket.settimeout(None)
                self._hello()
                while True:
                    self._obey(self._line.receive()[0])
            if self._line:
                self._line.close()
            time.sleep(0.05)

    def _hello(self) -> None:
        if self._line:
            self._line.send(local.Hello(os.getpid(), self.attempt, tuple(self.processes.values()), "ready"))

    def _obey(self, message: local.Message) -> None:
        self.orders.append(message)
        if isinstance(message, local.Launch) and message.attempt > self.attempt:
            self.attempt = message.attempt
            self.processes = {i: local.Process(i, 1000 * message.attempt + i) for i in range(message.processes)}
        elif isinstance(message, local.Stop) and message.attempt >= self.attempt:
            for i in self.processes:
                self._end(i, None, signal.SIGKILL)
        elif isinstance(message, local.Finish):
            self.finished = message.exit_code
        self._hello()

    def _end(self, index: int, code: int | None, number: int | None) -> None:
        if not self.processes[index].ended:
            self.processes[index] = dataclasses.replace(self.processes[index], exit_code=code, signal=number)

    def end(self, index: int, code: int | None = 0, number: int | None = None) -> None:
        self._end(index, code, number)
        self._hello()

    def restart(self) -> None:
        """The trainer container was restarted: nothing is known, nothing runs."""
        self.attempt, self.processes = 0, {}
        if self._line:
            self._line.close()

    def close(self) -> None:
        self._closed = True
        if self._line:
            self._line.close()
        self._thread.join(5)


class FakeTrainer:
    """Writes snapshots as the real trainer does: through the arena file, then a notice."""

    def __init__(self, sidecar: Sidecar, rank: int, attempt: int, size: int = 100_000) -> None:
        self.rank, self.attempt, self.size = rank, attempt, size
        self.world = sidecar.config.world_size
        self.line = Line(sidecar.config.shared_dir)
        self.attached = self.line.ask(local.Attach(rank, attempt))
        self._path = ""
        self._buf: memoryview | None = None
        self.costs: dict[str, Any] = {}  # what the next snapshots are said to have cost: fields of `Sealed`

    def reserve(self, slot_bytes: int | None = None) -> local.Message:
        need = slot_bytes or arena.slot_bytes_for(self.size + 4096, 4096)
        reply = self.line.ask(local.Reserve(self.rank, self.attempt, need))
        if isinstance(reply, local.Reserved):
            self._path = reply.path
            self._buf = map_file(Path(reply.path))
        return reply

    @property
    def every(self) -> int:
        """The interval in the arena's header."""
        if self._buf is None:
            assert isinstance(self.reserve(), local.Reserved)
        assert self._buf is not None
        return arena.every(self._buf)

    def snapshot(self, step: int, *, skip_ok: bool = False) -> int:
        """The slot's index, -1 if there was none (only with `skip_ok`)."""
        if self._buf is None:
            assert isinstance(self.reserve(), local.Reserved)
        buf = self._buf
        assert buf is not None
        header = arena.read_header(buf)
        slots = [arena.read_slot(buf, i) for i in range(header.slots)]
        index = arena.choose_slot(slots, arena.committed(buf), time.monotonic_ns(), kept_steps=arena.kept(buf))
        if index is None:
            assert skip_ok, "no slot is free"
            self.line.send(local.Skipped(self.rank, self.attempt, step, "no_slot"))
            return -1
        nbytes = seal_content(buf, index, self.rank, self.world, step, self.attempt, self.size)
        self.line.send(local.Sealed(self.rank, self.attempt, step, self._path, index, nbytes, 0.001, **self.costs))
        self.line.send(local.Progress(self.rank, self.attempt, step, 1.5))
        return index

    def close(self) -> None:
        self.line.close()
