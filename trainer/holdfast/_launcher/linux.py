"""System calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd")
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans among our descendants become our children, as they do for PID 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; ends it now if the parent is another one already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def wait_for_parent(parent: int, seconds: float = 5.0) -> None:
    """Wait until this orphan has been handed to `parent`; returns after `seconds` at the latest."""
    deadline = time.monotonic() + seconds
    while os.getppid() != parent and time.monotonic() < deadline:
        time.sleep(0.0005)


def children() -> set[int]:
    """Pids whose parent is this process, zombies included."""
    me, found = os.getpid(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone meanwhile
            if int(fields[1]) == me:
                found.add(int(entry.name))
    return found


def thread_names() -> list[str]:
    """Names of this process's threads, as the kernel knows them: libraries start some that Python does not see."""
    return sorted(p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm"))


def holds_gpu() -> bool:
    """Whether this process has opened a GPU: CUDA does not survive a fork."""
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(fd).startswith(_GPU_DEVICES):
                return True
        except OSError:
            continue  # the one that lists this folder
    return False


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
