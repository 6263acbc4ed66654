"""Two network namespaces with a cable between them: two nodes, as far as sockets can tell. Needs root and iproute2."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import Unavailable

_NEWNET = 0x40000000  # CLONE_NEWNET
_NETWORK = "198.18.77"  # of the range that is set aside for benchmarks (RFC 2544)
_SECONDS = 10.0


@contextmanager
def cable() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Name and address of either end. Everything is removed at the end; raises Unavailable where it can't be made."""
    names = [f"hfbench{os.getpid()}{end}" for end in "ab"]
    hosts = [f"{_NETWORK}.{number}" for number in (1, 2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, host in zip(names, hosts, strict=True):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")
        yield (names[0], hosts[0]), (names[1], hosts[1])
    finally:
        for name in names:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=_SECONDS)


def enter(name: str) -> None:
    """Move this thread, and those that it starts from now on, to a namespace."""
    descriptor = os.open(Path("/run/netns") / name, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    finally:
        os.close(descriptor)


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], capture_output=True, check=True, text=True, timeout=_SECONDS)
    except FileNotFoundError as error:
        raise Unavailable("needs iproute2 (the command `ip`)") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"ip {' '.join(arguments)}: {error.stderr.strip()} (needs root)") from error
