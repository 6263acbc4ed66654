"""What a process keeps for itself, beside what it shares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")
_SHARED = ("/dev/shm/", "/dev/zero", "/memfd:", "/SYSV")


def private_dirty(lines: Iterable[str]) -> int:
    """Bytes of private dirty pages in the text of /proc/PID/smaps, without shared memory: a page of it that only one process
    has mapped is listed as private too, and the arena is to be left out."""
    total, counted = 0, True
    for line in lines:
        if line.startswith("Private_Dirty:"):
            total += int(line.split()[1]) << 10 if counted else 0
        elif found := _MAPPING.match(line):
            counted = not found[1].startswith(_SHARED)
    return total


def page_tables(lines: Iterable[str]) -> int:
    """Bytes, from the text of /proc/PID/status."""
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmPTE:"))


def own() -> int:
    """Of this process: private dirty pages and page tables (those of the arena's mapping too: nobody else pays for them)."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    return private_dirty(smaps) + page_tables(Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
