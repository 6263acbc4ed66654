"""Ports for processes that a test starts: no two of a test run get the same one, however late they bind it."""

from __future__ import annotations

import itertools
import os
import socket

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_own = range(13_000, 32_000)[_worker::_workers]  # not those that the kernel hands out, and above those of a cluster
_start = os.getpid() % len(_own)  # another checkout's tests may run on this machine
_ports = itertools.cycle([*_own[_start:], *_own[:_start]])


def free_port() -> int:
    """The next of this worker's ports that nobody has bound, on any address."""
    for port in itertools.islice(_ports, len(_own)):
        try:
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            continue
        return port
    raise AssertionError("this worker's ports are all taken")
