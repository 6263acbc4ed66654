"""What a process was started with, as the kernel shows it: how processes that carry a mark are found."""

from __future__ import annotations

import time
from pathlib import Path


def environ(entry: Path, patience: float = 1.0) -> bytes:
    """The environment of a process of /proc; waits up to `patience` seconds for one that is just being started.

    Who started it may go on, and look here, before the kernel has laid the environment out: it reads as empty until then.
    Raises OSError.
    """
    end = time.monotonic() + patience
    while not (found := _read(entry)):
        if not _in_exec(entry):
            return _read(entry)  # it may have been laid out between the two looks
        if time.monotonic() >= end:
            break
        time.sleep(0.001)
    return found


def _read(entry: Path) -> bytes:
    return (entry / "environ").read_bytes()


def _in_exec(entry: Path) -> bool:
    """Whether a process has its new memory (vsize) and not yet its environment (env_end); proc_pid_stat(5)."""
    fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[20]) != 0 and int(fields[48]) == 0
