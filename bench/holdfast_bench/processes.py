"""Ends what a measured system has started, and nothing else: its processes carry a mark in their environment.

Launchers start agents, agents start masters and trainers, some in sessions of their own: no process group holds them all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "HOLDFAST_BENCH_MARK"
_SECONDS = 5.0


def marked(mark: str) -> list[int]:
    """The living processes whose environment has this mark."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


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
