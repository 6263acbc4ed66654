"""Where each measured system runs: an environment of its own, made once from locked requirements and kept in the shared cache.

`ours` is the development environment (`.venv`): Holdfast, and torch's own torch.save and DCP, are measured with the torch that
Holdfast is built against. A peer that runs with that torch borrows it by reference (`torch="ours"`); one that needs another
brings its own in its lock file. Made by uv; about 4.5 GB and some minutes for a torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .progress import say

ROOT = Path(__file__).resolve().parents[2]
_BORROWED = "borrowed-torch.pth"
_INSTALL_SECONDS = 1800.0
_NEEDS_GIB = {"ours": 1, "own": 8}


class Unavailable(Exception):
    """A system cannot run here; the message is what the table says."""


@dataclass(frozen=True)
class Environment:
    """`lock` is a file of requirements/bench, without its ending; empty for `.venv` itself."""

    name: str
    lock: str = ""
    torch: str = "ours"

    @property
    def folder(self) -> Path:
        """Content-addressed: another lock file, Python or torch gives another folder."""
        if not self.lock:
            return ROOT / ".venv"
        parts = [self.lock_file.read_bytes(), sys.version.encode()]
        if self.torch == "ours":
            parts.append((ROOT / "requirements" / "torch.lock").read_bytes())
        return cache() / f"bench-{self.name}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"

    @property
    def lock_file(self) -> Path:
        """Its locked requirements."""
        return ROOT / "requirements" / "bench" / f"{self.lock}.lock"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it was made, to the end."""
        return not self.lock or (self.folder / ".complete").exists()

    def ensure(self) -> None:
        """Make it if it is not there; raises Unavailable with the reason."""
        if self.ready:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder / ".lock"):
            if not self.ready:
                self._make()

    def _make(self) -> None:
        need, free = _NEEDS_GIB[self.torch], _free_gib(self.folder)
        if free < need:
            raise Unavailable(f"its environment needs {need} GiB of disk, {self.folder.parent} has {free}")
        say(f"{self.name}: making its environment in {self.folder}" + (" (4.5 GB, minutes)" if self.torch == "own" else ""))
        uv = str(ROOT / ".venv" / "bin" / "uv")
        _run(self.name, [uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(self.folder)])
        install = [uv, "pip", "install", "-q", "--python", str(self.python), "--require-hashes", "-r", str(self.lock_file)]
        _run(self.name, install + (["--no-deps"] if self.torch == "ours" else []))
        if self.torch == "ours":
            (_site_packages(self.folder) / _BORROWED).write_text(f"{_torch_site()}\n", encoding="utf-8")
        (self.folder / ".complete").touch()


def cache() -> Path:
    """The shared cache of this project."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"its environment was not installed in {_INSTALL_SECONDS:.0f} s") from error
    if done.returncode:
        say(f"{name}: {done.stderr.strip()}")
        raise Unavailable(f"its environment cannot be installed: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def _free_gib(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize >> 30


def _torch_site() -> str:
    """The folder that holds the torch of `.venv`."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise Unavailable("torch is not installed in .venv: run make setup")
    return str(Path(spec.origin).parents[1])


def _site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python3*")) / "site-packages"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two runs of the benchmark do not install at the same time; the second waits for the first."""
    with open(path, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
