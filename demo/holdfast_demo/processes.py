"""Finds the processes of containers on this machine and signals them, as a crash or the kernel would: from outside.

A container is known by its id, which stands in the control group of each of its processes. In a cluster whose nodes are other
machines there is nothing to find; there `exec` does what it can.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from .clusters import Cluster
from .errors import DemoError
from .kube import Object
from .waiting import wait_for

_PROC = Path("/proc")


def container_id(pod: Object, container: str) -> str:
    """The running container's id; raises DemoError if it is not there."""
    status = pod.get("status", {})
    for found in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if found["name"] == container and found.get("containerID"):
            return str(found["containerID"]).rpartition("//")[2]
    raise DemoError(f"pod {pod['metadata']['name']} has no running container {container}")


def pids_of(container: str) -> list[int]:
    """Pids (this machine's) of a container's processes, oldest first."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and container in _read(entry / "cgroup"):
            found.append(int(entry.name))
    return sorted(found)


def main_pid(container: str) -> int:
    """The container's process 1; raises DemoError."""
    for pid in pids_of(container):
        line = next((x for x in _read(_PROC / str(pid) / "status").splitlines() if x.startswith("NSpid:")), "")
        if line.split()[-1:] == ["1"]:
            return pid
    raise DemoError(f"no process 1 of container {container[:12]} on this machine")


def trainer_pid(container: str, rank: int) -> int | None:
    """The process that trains as this rank: the one in the trainer's container that has the rank's arena mapped."""
    arena = f"/rank-{rank:05d}.g"
    for pid in pids_of(container):
        if arena in _read(_PROC / str(pid) / "maps"):
            return pid
    return None


def find_trainer(container: str, rank: int, limit: float = 10.0) -> int:
    """The same, waited for."""
    pid = wait_for(lambda: trainer_pid(container, rank), limit, f"trainer process of rank {rank}")
    assert pid is not None
    return pid


def kill(pid: int, number: int) -> float:
    """Send a signal; the time of it (seconds since the epoch)."""
    at = time.time()
    os.kill(pid, number)
    return at


def kill_trainer(cluster: Cluster, pod: Object, rank: int, number: int) -> float:
    """Signal a rank's trainer process; the time of it."""
    if cluster.existing:
        return _kill_inside(cluster, pod, rank, number)
    return kill(find_trainer(container_id(pod, "trainer"), rank), number)


def kill_main(pod: Object, container: str) -> float:
    """SIGKILL of a container's process 1."""
    return kill(main_pid(container_id(pod, container)), 9)


_INSIDE = """
import os, pathlib, sys, time
arena, number = f"/rank-{int(sys.argv[1]):05d}.g", int(sys.argv[2])
for entry in pathlib.Path("/proc").iterdir():
    try:
        if entry.name.isdecimal() and int(entry.name) != os.getpid() and arena in (entry / "maps").read_text():
            os.kill(int(entry.name), number)
            print("done")
            break
    except OSError:
        continue
"""


def _kill_inside(cluster: Cluster, pod: Object, rank: int, number: int) -> float:
    meta = pod["metadata"]
    words = ("exec", "-n", meta["namespace"], meta["name"], "-c", "trainer", "--", "python3", "-c", _INSIDE)
    out = cluster.kubectl(*words, str(rank), str(number))
    if "done" not in out:
        raise DemoError(f"no trainer process of rank {rank} in pod {meta['name']}")
    return time.time()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
