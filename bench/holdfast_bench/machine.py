"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from .environments import ROOT


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel, load at the start."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory("MemTotal") / 2**30, 1),
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
    }


def sentence(machine: dict[str, Any]) -> str:
    """The same in words."""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory, Linux {machine['kernel']}"


def memory(field: str) -> int:
    """A field of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise KeyError(f"/proc/meminfo has no {field}")


def versions() -> dict[str, str]:
    """Of what runs in this environment, and of what is pinned for the peers ("dlrover: torch" is the torch of DLRover's)."""
    ours = {"python": platform.python_version(), "holdfast": _version("holdfast"), "torch": _version("torch")}
    for path in sorted((ROOT / "requirements" / "bench").glob("*.in")):
        ours.update(pinned(path.stem, path.read_text(encoding="utf-8")))
    return ours


def pinned(peer: str, requirements: str) -> dict[str, str]:
    """The exact versions in a peer's requirements."""
    found = {}
    for line in requirements.splitlines():
        name, equals, version = line.partition("==")
        if equals and ";" not in line:
            package = name.partition("[")[0].strip()
            found[package if package == peer else f"{peer}: {package}"] = version.strip()
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
