"""A port for MASTER_PORT, which rank 0 binds seconds after it was chosen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000  # below are the ports that services have by custom
_TRIES = 20


def free_port() -> int:
    """One that nobody has, at random and not of those that the kernel gives to whoever asks for any, if there are others."""
    others = _others()
    for port in random.sample(others, min(_TRIES, len(others))):
        try:
            return _bound(port)
        except OSError:
            continue
    return _bound(0)


def _others() -> list[int]:
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):  # no Linux
        return []
    return [port for port in range(_LOWEST, 1 << 16) if not low <= port <= high]


def _bound(port: int) -> int:
    """The port that a socket got; on all addresses, as torch's store will ask for it."""
    with socket.socket() as probe:
        probe.bind(("", port))
        return int(probe.getsockname()[1])
