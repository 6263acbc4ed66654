"""The local stand-in for a pod: a sidecar and a launcher, a folder of shared memory, and a kubelet's patience with both."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from holdfast_core import wire
from holdfast_core.config import CONFIG_ENV, SOCKET, SidecarConfig

from .._launcher import linux
from .._log import note
from ..errors import HoldfastError

Output = int | IO[bytes] | None
_PREFIX = "holdfast-run-"
_MAX_RESTARTS = 5
_RESTART_WINDOW = 60.0  # seconds


class Pod:
    """Starts both processes, starts them again when they die, and removes every trace at the end."""

    def __init__(self, config: SidecarConfig, command: Sequence[str], output: int | None, verbose: bool) -> None:
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=memory_folder()))
        self.folder.chmod(0o700)
        self.config = replace(config, shared_dir=str(self.folder))
        self._command = command
        self._output = output
        self._verbose = verbose
        self._log = open(self.folder / "sidecar.log", "ab")  # noqa: SIM115 - the sidecar's stderr, for as long as it runs
        self._restarts: list[float] = []
        self._sidecar = self._start_sidecar()
        self._launcher = self._start_launcher()

    @property
    def api(self) -> str:
        """Path of the sidecar's API socket."""
        return str(self.folder / "run" / "api.sock")

    @property
    def finished(self) -> int | None:
        """The launcher's exit code once it was told to finish."""
        return self._launcher.poll()

    def look_after(self, ending: bool) -> None:
        """Restart what died, as a kubelet does; raises HoldfastError if that does not help."""
        if self._sidecar.poll() is not None:
            self._count("sidecar", self._sidecar.returncode)
            self._sidecar = self._start_sidecar()
        if self._launcher.poll() is not None and not ending:
            self._count("launcher", self._launcher.returncode)
            self._launcher = self._start_launcher()

    def _count(self, name: str, code: int) -> None:
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if t > now - _RESTART_WINDOW] + [now]
        if len(self._restarts) > _MAX_RESTARTS or (name == "sidecar" and code == 2):
            raise HoldfastError(f"the {name} does not stay up (exit code {code}); its last words:\n{self.sidecar_log()}")
        note(f"the {name} ended ({code}): starting it again")

    def sidecar_log(self, lines: int = 8) -> str:
        """The last lines of the sidecar's log."""
        text = (self.folder / "sidecar.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _start_sidecar(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, CONFIG_ENV: wire.dumps(self.config).decode()}
        log = None if self._verbose else self._log
        return self._start([sys.executable, "-m", "holdfast_sidecar"], env, log, log)

    def _start_launcher(self) -> subprocess.Popen[bytes]:
        own = {"HOLDFAST_SOCKET": str(self.folder / SOCKET), "HOLDFAST_JOB_UID": self.config.job_uid}
        command = [sys.executable, "-m", "holdfast.launcher", "--", *self._command]
        return self._start(command, {**os.environ, **own}, self._output, self._output)

    @staticmethod
    def _start(command: Sequence[str], env: dict[str, str], stdout: Output, stderr: Output) -> subprocess.Popen[bytes]:
        """In a session of its own: Ctrl-C comes to us, and we end things in order. If we are killed, the kernel does."""
        parent = os.getpid()
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: linux.die_with(parent),  # noqa: PLW1509 - we have one thread
        )

    def stop(self, grace: float) -> None:
        """Trainers first, then the sidecar, which brings the last step to the stores; bounded."""
        self._end(self._launcher, grace)
        self._end(self._sidecar, self.config.drain_seconds + grace)

    def kill(self) -> None:
        """At once."""
        for process in (self._launcher, self._sidecar):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def remove(self) -> None:
        """End what still runs and give the memory back."""
        self.kill()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def memory_folder() -> str:
    """Where snapshots live in RAM, if the machine has it. Else the temporary folder, which is slower but works."""
    shm = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
    return str(shm) if shm.is_dir() and os.access(shm, os.W_OK) else tempfile.gettempdir()


def remove_leftovers() -> None:
    """Memory of runs that were killed: their pid is in the folder's name."""
    for folder in Path(memory_folder()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):  # another run that starts now has removed it
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
