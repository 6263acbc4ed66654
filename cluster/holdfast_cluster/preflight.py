"""Checks before anything is changed. Each finding is one line that says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_cluster import cgroups
from holdfast_cluster.build import PROGRAMS, binary
from holdfast_cluster.config import PORTS, ClusterError, Paths
from holdfast_cluster.images import base_archive

COLD_GB = 15
WARM_GB = 4


@dataclass(frozen=True)
class Machine:
    """What the checks look at; taken from the machine by `observe`, made up by tests."""

    system: str
    user: int
    missing_controllers: tuple[str, ...]
    free_gb: Mapping[str, float]
    listeners: Mapping[int, str]
    cold: bool


def observe(paths: Paths) -> Machine:
    """Looks at this machine."""
    folders = {_existing(folder) for folder in (paths.cache, paths.state)}
    linux = platform.system() == "Linux"
    return Machine(
        system=platform.system(),
        user=os.geteuid(),
        missing_controllers=tuple(cgroups.missing_controllers()) if linux else (),
        free_gb={str(folder): shutil.disk_usage(folder).free / 1e9 for folder in folders},
        listeners=_listeners() if linux else {},
        cold=is_cold(paths),
    )


def is_cold(paths: Paths) -> bool:
    """Whether set-up work that takes minutes and gigabytes is still ahead."""
    return not (all(binary(paths, name).exists() for name in PROGRAMS) and base_archive(paths).exists())


def problems(machine: Machine) -> list[str]:
    """One line for each thing that keeps a cluster from running here; empty when all is well."""
    if machine.system != "Linux":
        return [f"this is {machine.system}, the local cluster needs Linux: use CLUSTER=existing with your own cluster"]
    if machine.user != 0:
        return ["not root: namespaces and mounts need it; run the same command with sudo"]
    found = []
    if machine.missing_controllers:
        names = ", ".join(machine.missing_controllers)
        found.append(f"no cgroup controller {names} below {cgroups.ROOT}: mount cgroups, or leave the container")
    need = COLD_GB if machine.cold else WARM_GB
    for folder, free in sorted(machine.free_gb.items()):
        if free < need:
            found.append(
                f"only {free:.1f} GB free at {folder}, {need} GB needed: free some, "
                "or set HOLDFAST_CACHE and HOLDFAST_CLUSTER_STATE to a bigger disk"
            )
    for name, port in PORTS.items():
        if port in machine.listeners:
            found.append(f"port {port} ({name}) is taken by {machine.listeners[port]}: stop that program")
    return found


def check(paths: Paths) -> None:
    """Raises ClusterError with all problems of this machine."""
    found = problems(observe(paths))
    if found:
        raise ClusterError("\n".join(found))


def _existing(folder: Path) -> Path:
    """The folder itself or the nearest parent that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _listeners() -> dict[int, str]:
    """{port: program} of listeners that the cluster would collide with: on all addresses, or on 127.0.0.1."""
    sockets: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            sockets.update(parse_listeners(Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]))
    return {port: _owner(inode) for inode, port in sockets.items() if port in PORTS.values()}


def parse_listeners(lines: Iterable[str]) -> dict[str, int]:
    """{socket inode: port} of the wildcard and loopback listeners in lines of /proc/net/tcp or tcp6."""
    found = {}
    for line in lines:
        fields = line.split()
        address, _, port = fields[1].partition(":")
        wildcard_or_loopback = set(address) == {"0"} or _is_loopback(address)
        if fields[3] == "0A" and wildcard_or_loopback:
            found[fields[9]] = int(port, 16)
    return found


def _is_loopback(address: str) -> bool:
    if len(address) != 8:
        return False
    return socket.inet_ntoa(struct.pack("<I", int(address, 16))).startswith("127.")


def _owner(inode: str) -> str:
    wanted = f"socket:[{inode}]"
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if wanted in _open_files(entry):
                    return f"{(entry / 'comm').read_text(encoding='utf-8').strip()} (pid {entry.name})"
    return "another program"


def _open_files(entry: Path) -> Iterator[str]:
    """What the descriptors of a process stand for; some are closed while we look. Raises OSError."""
    for descriptor in (entry / "fd").iterdir():
        with contextlib.suppress(OSError):
            yield os.readlink(descriptor)
