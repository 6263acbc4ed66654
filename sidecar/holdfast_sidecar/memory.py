"""Whether an arena or parity fits before it is created: a too small limit is an error with a number in it, not an OOM kill."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from holdfast_core.arena import ArenaHeader
from holdfast_core.config import SidecarConfig

from . import cgroup
from .slots import NoMemory

_MIB = 1 << 20
_RESERVE = 48 * _MIB  # what this process still needs beside the arenas: buffers of uploads
_RECORDS = 4 * _MIB  # what else must find room on the volume, now or later: the record, the injected packages


class Budget:
    """The tightest of: the configured limit, the container's cgroup, the machine's free memory, the volume's size."""

    def __init__(self, config: SidecarConfig, folder: Path, available: Callable[[], int | None] = cgroup.available) -> None:
        self.config, self._folder, self._available = config, folder, available
        self.beside: Callable[[], int] = lambda: 0  # bytes that parity takes

    def require(self, header: ArenaHeader, taken: int) -> None:
        """Raise NoMemory, naming the setting to change, unless one more arena of this shape fits. `taken`: by arenas."""
        left, what = min(self._limits(taken))
        if header.total_bytes > left:
            raise NoMemory(self._advice(header, left, what))

    def require_parity(self, what: str, nbytes: int, taken: int) -> None:
        """Raise NoMemory, naming the setting to change, unless one more parity buffer of so many bytes fits."""
        left, where = min(self._limits(taken))
        if nbytes > left:
            raise NoMemory(self.parity_advice(what, nbytes, left, where))

    def parity_advice(self, what: str, nbytes: int, left: int, where: str) -> str:
        """What to say when a buffer does not fit."""
        return (
            f"{what} takes {-(-nbytes // _MIB)} MiB, {max(0, left) // _MIB} MiB are left {where}: "
            f"raise checkpoint.memory.size, lower checkpoint.memory.slots (now {self.config.slots}), "
            "or set checkpoint.peers.parity to 0 to go without"
        )

    def _limits(self, taken: int) -> list[tuple[int, str]]:
        volume = os.statvfs(self._folder)
        limits = [(volume.f_bavail * volume.f_frsize - _RECORDS, "on the shared memory volume")]
        if self.config.memory_limit:
            limits.append((self.config.memory_limit - taken - self.beside(), "of the configured memory limit"))
        container = self._available()
        if container is not None:
            limits.append((container - _RESERVE, "under the sidecar's memory limit"))
        machine = _machine()
        if machine is not None:
            limits.append((machine - _RESERVE, "on the node"))
        return limits

    def _advice(self, header: ArenaHeader, left: int, what: str) -> str:
        config = self.config
        setting = f"{-(-header.slot_bytes // _MIB)}Mi"
        now = f" (now {config.slot_bytes // _MIB}Mi)" if config.slot_bytes else ""
        return (
            f"a snapshot of rank {header.rank} takes {header.slot_bytes} bytes; its arena of {header.slots} slots needs "
            f"{-(-header.total_bytes // _MIB)} MiB, {max(0, left) // _MIB} MiB are left {what}: "
            f"set checkpoint.memory.size to {setting}{now}"
        )


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
