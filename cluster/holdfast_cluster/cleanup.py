"""Takes a cluster off the machine, whatever state it is in: running, half started, or killed with no warning.

Works from what the machine shows (marked processes, mounts, links, control groups, loop devices), not from what the
state folder says, because an interrupted `up` may not have got to say it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

from holdfast_cluster import cgroups, network
from holdfast_cluster.config import MARKER, ClusterError, Paths
from holdfast_cluster.daemon import start_time
from holdfast_cluster.environs import environ
from holdfast_cluster.shell import run, succeeds, wait_until


def remove_everything(paths: Paths) -> None:
    """Removes the cluster and its state folder; raises ClusterError that lists what would not go."""
    _refuse_foreign(paths)
    # The wires first: no process on a node may reach anybody while it is being killed.
    for link in network.our_links():
        succeeds(["ip", "link", "set", link, "down"])
    _kill_members(paths)
    cgroups.remove()
    for link in network.our_links():
        succeeds(["ip", "link", "del", link])
    _unmount_all(paths)
    network.restore_sysctls(paths)
    with contextlib.suppress(ClusterError):
        # A loop device goes a moment after its last mount, which may be another program's copy of our mount table.
        wait_until(lambda: not leftovers(paths), timeout=60, what="", every=0.2)
    if left := leftovers(paths):
        raise ClusterError("these would not go away: " + "; ".join(left))
    shutil.rmtree(paths.state, ignore_errors=True)


def leftovers(paths: Paths) -> list[str]:
    """Everything of a cluster that is on the machine now, one line each; empty on a clean machine."""
    found = [f"process {pid} ({_command(pid)})" for pid in members(paths)]
    found += [f"mount {target}" for target in our_mounts(paths)]
    found += [f"link {name}" for name in network.our_links()]
    found += [f"cgroup {group}" for group in cgroups.ours()]
    found += [f"loop device {device}" for device in _loops(paths)]
    found += ["changed kernel settings"] if paths.sysctls.exists() else []
    return found


def _refuse_foreign(paths: Paths) -> None:
    """Raises ClusterError when the links belong to a live cluster with another state folder."""
    found = {value for value in _markers().values() if value != str(paths.state)}
    if found:
        raise ClusterError(f"another cluster runs here: set HOLDFAST_CLUSTER_STATE={found.pop()} and use that one")


def members(paths: Paths) -> list[int]:
    """Live processes that carry the marker of this state folder."""
    return sorted(pid for pid, state in _markers().items() if state == str(paths.state))


def _markers(proc: Path = Path("/proc")) -> dict[int, str]:
    """{pid: state folder} of all live processes that carry a marker."""
    head, found = f"{MARKER}=".encode(), {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                for variable in environ(entry).split(b"\0"):
                    if variable.startswith(head) and start_time(int(entry.name)) is not None:
                        found[int(entry.name)] = os.fsdecode(variable[len(head) :])
    return found


def _kill_members(paths: Paths) -> None:
    """Kills until none is left: one may be starting another while we look."""

    def none_left() -> bool:
        pids = [pid for pid in members(paths) if pid != os.getpid()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return not pids

    wait_until(none_left, timeout=30, what="processes of the cluster do not die", every=0.1)


def our_mounts(paths: Paths) -> list[str]:
    """Mount points below the state folder in the machine's own mount namespace, innermost first."""
    prefix = str(paths.state)
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    targets = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [target for target in reversed(targets) if target == prefix or target.startswith(prefix + "/")]


def _unmount_all(paths: Paths) -> None:
    for target in our_mounts(paths):
        if not succeeds(["umount", target]):
            # Somebody holds a file open in it: detach, so that it goes with its last user.
            run(["umount", "--lazy", target])


def _loops(paths: Paths) -> list[str]:
    """Loop devices whose backing file lies in the state folder."""
    try:
        devices = json.loads(run(["losetup", "--json", "--list"]) or "{}").get("loopdevices", [])
    except ClusterError:
        return []
    prefix = str(paths.state) + "/"
    return [str(device["name"]) for device in devices if str(device.get("back-file", "")).startswith(prefix)]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return os.path.basename(words[0].decode(errors="replace")) or "?"
