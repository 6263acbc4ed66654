"""Long-lived processes of the cluster: started apart from the terminal, found again by pid and start time.

The pid alone is not enough: it may have been given to somebody else since. The start time from /proc makes it sure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast_cluster.config import MARKER, ClusterError, Paths
from holdfast_cluster.shell import check_not_aborted, tail, wait_until


@dataclass(frozen=True)
class Daemon:
    """One background process: its name, its pid file and its log."""

    name: str
    paths: Paths

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.paths.logs / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """Pid and start time of the running process."""
        return self.paths.run / f"{self.name}.json"

    def start(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Starts the process in its own session with output to its log and returns its pid."""
        check_not_aborted()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), MARKER: str(self.paths.state)},
                cwd="/",
                start_new_session=True,
            )
        keep(process)
        remember(self.pid_file, process.pid)
        return process.pid

    def pid(self) -> int | None:
        """The pid while that very process lives, else None."""
        return recall(self.pid_file)

    def alive(self) -> bool:
        """Whether that very process lives."""
        return self.pid() is not None

    def wait_ready(self, ready: Callable[[], bool], timeout: float) -> None:
        """Waits until `ready()` holds; a process that died or is late fails with the end of its log."""

        def settled() -> bool:
            return not self.alive() or ready()

        try:
            wait_until(settled, timeout=timeout, what=f"{self.name} is not ready")
        except ClusterError as error:
            raise ClusterError(f"{error}; end of {self.log}:\n{tail(self.log)}") from None
        if not self.alive():
            raise ClusterError(f"{self.name} died at its start; end of {self.log}:\n{tail(self.log)}")

    def stop(self, grace: float = 5.0) -> bool:
        """Ends the process (SIGTERM, after `grace` seconds SIGKILL); False when it was not running."""
        pid = self.pid()
        if pid is None:
            self.pid_file.unlink(missing_ok=True)
            return False
        _signal(pid, signal.SIGTERM if grace > 0 else signal.SIGKILL)
        with contextlib.suppress(ClusterError):
            wait_until(lambda: not self.alive(), timeout=max(grace, 0.1), what=self.name, every=0.05)
        if self.alive():
            _signal(pid, signal.SIGKILL)
            wait_until(lambda: not self.alive(), timeout=10, what=f"{self.name} does not die", every=0.05)
        self.pid_file.unlink(missing_ok=True)
        return True


_kept: list[subprocess.Popen[bytes]] = []


def keep(process: subprocess.Popen[bytes]) -> None:
    """Says that a process outlives this command on purpose: dropping its object would be taken for a mistake."""
    _kept.append(process)


def remember(pid_file: Path, pid: int) -> None:
    """Writes a pid and its start time for `recall`."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(json.dumps({"pid": pid, "started": start_time(pid)}), encoding="utf-8")


def recall(pid_file: Path) -> int | None:
    """The pid of a file written by `remember`, while that same process lives."""
    try:
        record = json.loads(pid_file.read_text(encoding="utf-8"))
        pid = int(record["pid"])
    except (OSError, ValueError, KeyError):
        return None
    started = start_time(pid)
    return pid if started is not None and started == record.get("started") else None


def start_time(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
