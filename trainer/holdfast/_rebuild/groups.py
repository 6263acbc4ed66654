"""What is done to torch.distributed: recognising a peer's death, freeing who waits for a dead peer, tearing down.

Touches nothing that the script has not imported.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# gloo raises plain RuntimeErrors that name its source file, and wraps neither.
_OF_A_PEER = re.compile(r"\bgloo\b|\bNCCL\b|\bucc\b|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


def peer_failed(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, is what the loss of another rank looks like."""
    dist = _distributed()
    return dist is not None and any(_is_of_a_peer(dist, e) for e in chain(error))


def _is_of_a_peer(dist: Any, error: BaseException) -> bool:
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    return isinstance(error, RuntimeError) and bool(_OF_A_PEER.search(str(error)))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            left += [one.__cause__, one.__context__]
            yield one


def release() -> None:
    """From another thread: make the one that waits for other ranks come out with an error."""
    with suppress(Exception):  # whatever it was, the launcher's bound follows
        _shut_the_store()
    dist = _distributed()
    if exist() and _uses_nccl(dist):
        with suppress(Exception):
            _abort(dist)


def _shut_the_store() -> None:
    """The rendezvous of this attempt, which all ranks of it leave: connections from and to MASTER_PORT."""
    port = int(os.environ.get("MASTER_PORT", "0"))
    for name in os.listdir("/proc/self/fd") if port else ():
        with suppress(OSError, TypeError), socket.socket(fileno=os.dup(int(name))) as connection:
            if port in (connection.getsockname()[1], connection.getpeername()[1]):
                connection.shutdown(socket.SHUT_RDWR)


def exist() -> bool:
    """Whether there is a default process group."""
    dist = _distributed()
    return dist is not None and bool(dist.is_initialized())


def hold() -> list[Any]:
    """The process groups of now. Whoever drops them last should do it through this list.

    With gloo the last reference joins threads that may need the GIL to end: dropped from Python it is released meanwhile,
    dropped by DDP's reducer it is not, and the process hangs (seen with torch 2.13).
    """
    dist = _distributed()
    return list(dist.distributed_c10d._world.pg_map) if exist() else []


def destroy() -> None:
    """Take down the process groups, without waiting for ranks that are gone."""
    dist = _distributed()
    if exist() and _uses_nccl(dist):
        _abort(dist)
    if exist():
        dist.destroy_process_group()


def _uses_nccl(dist: Any) -> bool:
    return "nccl" in str(dist.get_backend_config() if hasattr(dist, "get_backend_config") else dist.get_backend())


def _abort(dist: Any) -> None:
    """NCCL's tear-down is a collective of its own: aborting is not."""
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)  # torch 2.6; before that NCCL's own time-out ends it
    if abort is not None:
        abort()


def _distributed() -> Any:
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() else None
