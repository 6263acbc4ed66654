"""Process 1 of a node: sets up its mounts, then starts and restarts its services and reaps orphans, as an init does.

Started by `node` inside fresh namespaces with a file that says what to do. It has no clean shutdown on purpose:
a node loses its power.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESTART_SECONDS = 1.0


def main(boot_file: str) -> None:
    """Sets the node up as its boot file says and serves for ever."""
    boot: dict[str, Any] = json.loads(Path(boot_file).read_text(encoding="utf-8"))
    # /proc is still the machine's, so this is the pid that the machine knows us by.
    outer_pid = os.readlink("/proc/self")
    socket.sethostname(boot["node"])
    _mounts(boot)
    pid_file = Path(boot["pid_file"])
    part = pid_file.with_suffix(".part")
    part.write_text(outer_pid, encoding="ascii")
    part.replace(pid_file)
    if sys.stdin.readline() != "go\n":
        sys.exit("the start was given up before the network was there")
    for key, value in boot["sysctls"].items():
        setting = Path("/proc/sys") / key
        if setting.exists():
            setting.write_text(value, encoding="ascii")
    _serve(boot["services"], Path(boot["logs"]), boot["node"])


def _mounts(boot: dict[str, Any]) -> None:
    """An own /proc, /run, /dev/shm, /var/lib and /var/log, and the folder that all nodes share."""
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    _mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    shared_source, shared_target = boot["shared"]
    kept = {folder: Path("/run/holdfast-kept") / str(index) for index, folder in enumerate(boot["kept"])}
    for folder, place in kept.items():
        place.mkdir(parents=True)
        _mount("--rbind", folder, str(place))
    state = kept[boot["kept"][0]]
    for source, target in boot["binds"].items():
        _mount("--bind", str(state / source), target)
    for folder, place in kept.items():
        _uncover(Path(folder), place)
    _mount("--bind", str(state / shared_source), shared_target)
    _boot_id()
    # Below here mounts may be shared between containers, as on a machine that systemd has booted.
    _mount("--make-rshared", "/")


def _uncover(folder: Path, place: Path) -> None:
    """Puts a folder back at its own path when the node's own /var/lib covers it, as it does the default state's."""
    if folder.is_dir() and any(folder.iterdir()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _mount("--rbind", str(place), str(folder))


def _boot_id() -> None:
    """A fresh boot id: kubelet tells by it that the node was rebooted."""
    source = Path("/run/boot_id")
    source.write_text(Path("/proc/sys/kernel/random/uuid").read_text(encoding="ascii"), encoding="ascii")
    _mount("--bind", str(source), "/proc/sys/kernel/random/boot_id")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _serve(services: dict[str, list[str]], logs: Path, node: str) -> None:
    """Starts all services and restarts the ones that end, for ever. Blocks in wait; never polls."""
    running = {_start(name, argv, logs, node): name for name, argv in services.items()}
    while True:
        pid, status = os.waitpid(-1, 0)
        name = running.pop(pid, None)
        if name is None:
            continue
        print(f"{name} ended with status {os.waitstatus_to_exitcode(status)}; starting it again", flush=True)
        time.sleep(RESTART_SECONDS)
        running[_start(name, services[name], logs, node)] = name


def _start(name: str, argv: list[str], logs: Path, node: str) -> int:
    with (logs / f"{node}.{name}.log").open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/").pid


if __name__ == "__main__":
    main(sys.argv[1])
