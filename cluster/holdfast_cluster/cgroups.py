"""Control groups of the cluster's containers, on version 1 and version 2 machines alike.

Everything lies below one group, so that `remove` takes all of it and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from holdfast_cluster.config import CGROUP, ClusterError
from holdfast_cluster.shell import wait_until

ROOT = Path("/sys/fs/cgroup")
_NEEDED = {"cpu", "memory", "pids"}


def is_v2(root: Path = ROOT) -> bool:
    """Whether the machine has the unified hierarchy alone."""
    return (root / "cgroup.controllers").exists()


def hierarchies(root: Path = ROOT) -> list[Path]:
    """The root of each hierarchy: one on v2, one a controller on v1 (joined controllers are links, counted once)."""
    if is_v2(root):
        return [root]
    if not root.is_dir():
        return []
    return sorted({entry.resolve() for entry in root.iterdir() if (entry / "cgroup.procs").exists()})


def missing_controllers(root: Path = ROOT) -> list[str]:
    """Controllers that the cluster needs and the machine does not offer."""
    if is_v2(root):
        offered = set((root / "cgroup.controllers").read_text(encoding="ascii").split())
    else:
        offered = {entry.name for entry in root.iterdir()} if root.is_dir() else set()
    return sorted(_NEEDED - offered)


def node_group(node: str) -> str:
    """kubelet's `cgroupRoot` for a node."""
    return f"/{CGROUP}/{node}"


def make(node: str) -> None:
    """Makes a node's group in every hierarchy, with the settings that children need before they can be used."""
    for root in hierarchies():
        folder = root
        for name in (CGROUP, node):
            if is_v2():
                _delegate(folder)
            parent, folder = folder, folder / name
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if not is_v2() and (parent / setting).exists():
                    (folder / setting).write_text((parent / setting).read_text(encoding="ascii"), encoding="ascii")
        if is_v2():
            _delegate(folder)


def _delegate(folder: Path) -> None:
    offered = (folder / "cgroup.controllers").read_text(encoding="ascii").split()
    with contextlib.suppress(OSError):
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in offered), encoding="ascii")


def ours(node: str = "") -> list[Path]:
    """Our groups in all hierarchies, or one node's, children first."""
    found = []
    for root in hierarchies():
        top = root / CGROUP / node
        if top.is_dir():
            found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def remove(node: str = "", timeout: float = 20.0) -> None:
    """Kills what is left in our groups (or one node's) and removes them; raises ClusterError when one stays busy."""

    def gone() -> bool:
        for group in ours(node):
            _kill_members(group)
            with contextlib.suppress(OSError):
                group.rmdir()
        return not ours(node)

    try:
        wait_until(gone, timeout=timeout, what="", every=0.2)
    except ClusterError:
        left = ", ".join(map(str, ours(node)[:3]))
        raise ClusterError(f"control groups stay busy: {left}; see their cgroup.procs") from None


def _kill_members(group: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            # Pid 0 stands for a process that our own pid namespace can't see: never a signal target.
            if int(pid) > 1:
                os.kill(int(pid), signal.SIGKILL)
