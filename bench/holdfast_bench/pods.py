"""A job as on a cluster, on loopback: a real sidecar (mTLS) and a real launcher a pod, with the orders that an operator gives.

The trainers that the launchers start are `worker.py`s: they do what they are told over a socket, all ranks at once. Sidecars
can be started anew with other settings while they wait: the same processes and the same memory, with and without.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from holdfast_core import wire
from holdfast_core.config import CONFIG_ENV, SOCKET, TLS_NAME, PeersConfig, SidecarConfig
from holdfast_core.messages import Command, Member
from holdfast_core.timeline import Resume
from holdfast_operator.certificates import issue

from .environments import ROOT, Unavailable
from .processes import MARK, end_all, new_mark, remove

_UID = "bench"
_SHM = Path("/dev/shm")
_SECONDS = 60.0
_QUIT_SECONDS = 10.0
_DRAIN_SECONDS = 40.0  # a sidecar goes when its peers hold the last step: that takes a round, and longer with a limit
_TICKS = os.sysconf("SC_CLK_TCK")
_PEER = struct.Struct("3i")  # pid, uid, gid at the other end of a Unix socket
_PORTS = range(27000, 29500)  # the kernel gives none of them to a connection before it is bound, tests take others
_FIRST = "-10"  # niceness of the measured processes, all of them alike
State = dict[str, Any]


class Pods:
    """Use as a context manager: leaving it ends the processes and removes their files. `environ`: what trainers find there."""

    def __init__(
        self, name: str, count: int, task: str, peers: PeersConfig, slots: int, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.mark = name, new_mark()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.mark}-", dir=_SHM))
        self._pods: list[_Pod] = []
        try:
            self._certify()
            self._pods = [self._pod(index, count, peers, slots) for index in range(count)]
            for pod in self._pods:
                pod.start(task, environ or {})
            self._begin()
        except BaseException:
            self.close()
            raise

    def _certify(self) -> None:
        (self.folder / "tls").mkdir()
        for name, text in issue(_UID, datetime.datetime.now(datetime.UTC)).items():
            (self.folder / "tls" / name).write_text(text)

    def _pod(self, index: int, count: int, peers: PeersConfig, slots: int) -> _Pod:
        config = SidecarConfig(
            _UID, "bench", "default", f"bench-{index}", index, index, 1, count, slots=slots, peers=peers,
            shared_dir=str(self.folder / f"p{index}"), tls_dir=str(self.folder / "tls"),
            api_port=_free_port(), metrics_port=_free_port(), peer_port=_free_port(),
        )  # fmt: skip
        return _Pod(config, self.mark)

    def _begin(self) -> None:
        members = tuple(pod.member for pod in self._pods)
        prepare = Command("prepare", 1, members, None, (Resume(1, -1),), _free_port())
        for order, phase in ((prepare, "prepared"), (Command("launch", 1), "running")):
            for pod in self._pods:
                pod.order(order)
            self.wait(partial(_is_in, phase), phase)
        for pod in self._pods:
            pod.accept()

    # --- trainers

    def ask(self, verb: str, timeout: float = 300.0, **arguments: Any) -> list[dict[str, Any]]:
        """Have all ranks do one thing at the same time; raises Unavailable with the first error."""
        for pod in self._pods:
            pod.tell({"verb": verb, **arguments})
        answers = [pod.hear(timeout) for pod in self._pods]
        for answer in answers:
            if "error" in answer:
                raise Unavailable(f"{self.name}: {answer['error']}")
        return answers

    # --- sidecars

    def restart(self, peers: PeersConfig) -> None:
        """Sidecars with other settings take over from those that are there; raises Unavailable."""
        for pod in self._pods:
            pod.stop()
        for pod in self._pods:
            pod.start_sidecar(peers)
        now = time.monotonic()
        self.wait(lambda s: s["phase"] == "running" and s["launcher"], "running again", since=now)

    def committed(self) -> int:
        """The newest step that all sidecars know to be committed in memory, -1 if there is none."""
        found = [pod.state["committed"] for pod in self._pods]
        return min(copy["step"] if copy else -1 for copy in found)

    def told(self, since: float, until: float) -> list[State]:
        """All that the sidecar of rank 0 said in that time (monotonic)."""
        return [json.loads(line) for at, line in tuple(self._pods[0].lines) if since <= at < until]

    def wait(self, check: Callable[[State], object], what: str, seconds: float = _SECONDS, since: float = 0.0) -> None:
        """Until it is true of each sidecar's state, as told later than `since` (monotonic); raises Unavailable."""
        deadline = time.monotonic() + seconds
        while not all(pod.heard > since and check(pod.state) for pod in self._pods):
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name}: not {what} within {seconds:.0f} s: {self._pods[0].last_words()}")
            time.sleep(0.02)

    def counted(self, metric: str) -> float:
        """The sum of a counter's values in all sidecars."""
        return sum(pod.counted(metric) for pod in self._pods)

    def cpu_seconds(self) -> float:
        """Used by all sidecars so far."""
        return sum(pod.cpu_seconds() for pod in self._pods)

    def close(self) -> None:
        """End it; bounded."""
        for pod in self._pods:
            with contextlib.suppress(OSError, Unavailable):
                pod.tell({"verb": "quit"})
        for pod in self._pods:
            with contextlib.suppress(OSError, Unavailable):
                pod.hear(_QUIT_SECONDS)
        for pod in self._pods:
            pod.close()
        end_all(self.mark)
        for pod in self._pods:
            pod.reap()
        remove(self.mark)

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pod:
    """One sidecar, one launcher, one trainer."""

    def __init__(self, config: SidecarConfig, mark: str) -> None:
        self._config, self._mark = config, mark
        self._shared = Path(config.shared_dir)
        self._shared.mkdir()
        self.lines: list[tuple[float, bytes]] = []
        self._sidecar: subprocess.Popen[bytes] | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._follower: threading.Thread | None = None
        self._stream: IO[str] | None = None
        self._socket: socket.socket | None = None
        self._tls = ssl.create_default_context(cafile=f"{config.tls_dir}/ca.crt")
        self._tls.load_cert_chain(f"{config.tls_dir}/tls.crt", f"{config.tls_dir}/tls.key")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._shared / "bench.sock"))
        self._listener.listen(1)

    @property
    def member(self) -> Member:
        """For the orders."""
        c = self._config
        return Member(c.index, c.pod, "127.0.0.1", c.api_port, c.first_rank, c.processes, peer_port=c.peer_port)

    def start(self, task: str, more: Mapping[str, str]) -> None:
        """Sidecar, then launcher; each in a session of its own, as containers are groups of their own."""
        self.start_sidecar(self._config.peers)
        own = {
            "HOLDFAST_SOCKET": str(self._shared / SOCKET),
            "HOLDFAST_JOB_UID": _UID,
            "HOLDFAST_BENCH_SOCKET": str(self._shared / "bench.sock"),
            "HOLDFAST_BENCH_FOLDER": str(self._shared),
        }
        script = [sys.executable, str(ROOT / "bench" / "worker.py"), task, "holdfast"]
        self._launcher = self._run([sys.executable, "-m", "holdfast.launcher", "--", *script], {**own, **more})

    def start_sidecar(self, peers: PeersConfig) -> None:
        """Begin to serve; raises Unavailable."""
        self._config = replace(self._config, peers=peers)
        own = {CONFIG_ENV: wire.dumps(self._config).decode()}
        self._sidecar = self._run([sys.executable, "-m", "holdfast_sidecar"], own)
        _let_go_first(self._sidecar.pid)
        self._until(lambda: self._http("/healthz")[0] == 200, "healthy")
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def stop(self) -> None:
        """End the sidecar in order; what it holds in memory stays."""
        if self._sidecar is not None:
            self._sidecar.terminate()
            self._sidecar.wait(_DRAIN_SECONDS)
        if self._follower is not None:
            self._follower.join(_QUIT_SECONDS)

    def _run(self, command: list[str], own: Mapping[str, str]) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(str(ROOT / part) for part in ("bench", "core", "sidecar", "trainer", "examples/gpt"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        environ = {**clean, "PYTHONPATH": path, MARK: self._mark, **own}
        with open(self._shared / "log", "ab") as log:
            return subprocess.Popen(
                command, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _until(self, check: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if check():
                    return
            if time.monotonic() > deadline or (self._sidecar is not None and self._sidecar.poll() is not None):
                raise Unavailable(f"{self._config.pod} is not {what}: {self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its log."""
        lines = (self._shared / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    # --- the operator's part

    def _api(self) -> http.client.HTTPSConnection:
        return _Connection("127.0.0.1", self._config.api_port, timeout=_SECONDS, context=self._tls)

    def order(self, command: Command) -> None:
        """Raises Unavailable if it is refused."""
        connection = self._api()
        try:
            connection.request("POST", "/v1/command", wire.dumps(command))
            answer = connection.getresponse()
            if answer.status != 200:
                raise Unavailable(f"{self._config.pod} refused to {command.kind}: {answer.read().decode()}")
        finally:
            connection.close()

    def _follow(self) -> None:
        """The stream that the operator keeps open. Lines are parsed later: on a cluster that is not this machine's work."""
        connection = self._api()
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/v1/events")
            with connection.getresponse() as answer:
                while line := answer.readline():
                    self.lines.append((time.monotonic(), line))

    @property
    def state(self) -> State:
        """The last one; empty before the first."""
        found: State = json.loads(self.lines[-1][1]) if self.lines else {}
        return found

    @property
    def heard(self) -> float:
        """When that was (monotonic)."""
        return self.lines[-1][0] if self.lines else 0.0

    def _http(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._config.metrics_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def counted(self, metric: str) -> float:
        """The sum of a metric's values; `metric` is how its lines begin."""
        lines = (line for line in self._http("/metrics")[1].splitlines() if line.startswith(metric))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def cpu_seconds(self) -> float:
        """Of its sidecar."""
        if self._sidecar is None:
            return 0.0
        fields = Path(f"/proc/{self._sidecar.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    # --- the trainer

    def accept(self) -> None:
        """Wait for it to call; raises Unavailable."""
        self._listener.settimeout(_SECONDS)
        try:
            self._socket, _ = self._listener.accept()
        except TimeoutError:
            raise Unavailable(f"the trainer of {self._config.pod} did not start: {self.last_words()}") from None
        self._stream = self._socket.makefile("rw", encoding="utf-8")
        _let_go_first(_PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0])

    def tell(self, request: dict[str, Any]) -> None:
        """Send it a request; raises OSError, or Unavailable if it is not there."""
        if self._stream is None:
            raise Unavailable(f"{self._config.pod} is not running")
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()

    def hear(self, timeout: float) -> dict[str, Any]:
        """Its answer; raises Unavailable."""
        if self._stream is None or self._socket is None:
            raise Unavailable(f"{self._config.pod} is not running")
        self._socket.settimeout(timeout)
        try:
            line = self._stream.readline()
        except OSError as error:
            raise Unavailable(f"no answer from {self._config.pod}: {error}") from error
        if not line:
            raise Unavailable(f"{self._config.pod} died: {self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Hang up; its log stays, for whoever asks why."""
        for held in (self._stream, self._socket, self._listener):
            if held is not None:
                with contextlib.suppress(OSError):
                    held.close()
        with contextlib.suppress(OSError):
            kept = ROOT / "build" / "bench-logs"
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._shared / "log", kept / f"{self._config.pod}.log")

    def reap(self) -> None:
        """They are ended, so the stream is too."""
        if self._follower is not None:
            self._follower.join(5.0)
        for process in (self._sidecar, self._launcher):
            with contextlib.suppress(subprocess.TimeoutExpired, AttributeError):
                process.wait(5.0)  # type: ignore[union-attr]


class _Connection(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=TLS_NAME)  # type: ignore[attr-defined]


def _is_in(phase: str, state: State) -> bool:
    return bool(state["phase"] == phase)


def _let_go_first(pid: int) -> None:
    """What else runs on this machine shall count less: the weight of a session among all (the kernel's autogroups; root)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(_FIRST)


def _unused() -> Iterator[int]:
    """Ports that nobody has bound, each of them once; every process begins elsewhere."""
    shift = 97 * os.getpid() % len(_PORTS)
    for port in (*_PORTS[shift:], *_PORTS[:shift]):
        with contextlib.suppress(OSError):
            with socket.socket() as probe:
                probe.bind(("", port))
            yield port


_unused_ports = _unused()


def _free_port() -> int:
    return next(_unused_ports)
