"""Ends what a measured system has started, and nothing else: its processes carry a mark in their environment.

Launchers start agents, agents start masters and trainers, some in sessions of their own: no process group holds them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import uuid
from pathlib import Path

from holdfast_cluster.environs import environ

MARK = "HOLDFAST_BENCH_MARK"
_SECONDS = 5.0


def marked(mark: str) -> list[int]:
    """The living processes whose environment has this mark."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in environ(path).split(b"\0"):
                found.append(int(path.name))
    return found


def prefix() -> str:
    """What every mark begins with, and every file in shared memory that goes with it."""
    return "holdfast-bench-"


def sweep(folder: Path = Path("/dev/shm")) -> list[str]:
    """Remove what a run that was killed left in shared memory, once its processes are ended; the marks that were swept.

    A run that still lives keeps its own: its driver's id is in each mark.
    """
    stale = set()
    for path in folder.glob(f"*{prefix()}*"):
        mark = path.name[path.name.index(prefix()) :]
        owner = mark.removeprefix(prefix()).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            stale.add("-".join(mark.split("-")[:4]).partition("_")[0])
    for mark in stale:
        end_all(mark)
        remove(mark, folder)
    return sorted(stale)


def remove(mark: str, folder: Path = Path("/dev/shm")) -> None:
    """The files and folders of a mark."""
    for path in folder.glob(f"*{mark}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def new_mark() -> str:
    """For one measured system."""
    return f"{prefix()}{os.getpid()}-{uuid.uuid4().hex[:12]}"


def end_all(mark: str) -> None:
    """SIGTERM, then SIGKILL for what is left after a few seconds; bounded."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _SECONDS
        while marked(mark):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
