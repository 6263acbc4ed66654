"""Ports for processes that a test starts: no two of a test run get the same one, however late they bind it."""

from __future__ import annotations

import itertools
import os
import socket

_SIZE = 1000  # ports a worker; below 22000, and so below those that the kernel hands out
_WORKERS = 11
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_range = range(10_000 + _SIZE * _worker, 10_000 + _SIZE * (_worker + 1))
_start = os.getpid() % _SIZE  # another checkout's tests may run on this machine
_ports = itertools.cycle([*_range[_start:], *_range[:_start]])


def free_port() -> int:
    """The next of this worker's ports that nobody has bound, on any address."""
    assert _worker < _WORKERS, f"there are ports for {_WORKERS} workers"
    for port in itertools.islice(_ports, _SIZE):
        try:
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            continue
        return port
    raise AssertionError(f"{_range} are all taken")
