"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


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
    """Of what runs in this environment; a peer's are added by its worker."""
    return {"python": platform.python_version(), "holdfast": _version("holdfast"), "torch": _version("torch")}


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
