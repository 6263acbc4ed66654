"""What is done to torch.distributed: recognising a peer's death, freeing who waits for a dead peer, tearing down.

Touches nothing that the script has not imported.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from .._log import note

_MAKERS = ("init_process_group", "new_group")
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


def release(before: int) -> None:
    """From another thread: make the main thread, if it waits for other ranks, come out with an error.

    `before`: how often this has been tried. Nothing ends the wait for a rank that never shows up while a group is made: then
    the process ends itself, and has lost nothing but a moment.
    """
    if before and _sets_up():
        note("this process waits in init_process_group for ranks that are gone, and can't be kept: ending it")
        os._exit(128 + signal.SIGTERM)
    with suppress(Exception):  # whatever it was, the launcher's bound follows
        _shut_the_store()
    dist = _distributed()
    if exist() and _uses_nccl(dist):
        with suppress(Exception):
            _abort(dist)


def _sets_up() -> bool:
    """Whether the main thread is making a process group."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name in _MAKERS and frame.f_globals.get("__name__") == "torch.distributed.distributed_c10d":
            return True
        frame = frame.f_back
    return False


def _shut_the_store() -> None:
    """The rendezvous of this attempt, which all ranks of it leave: connections from and to MASTER_PORT."""
    port = int(os.environ.get("MASTER_PORT", "0"))
    for name in os.listdir("/proc/self/fd") if port else ():
        with suppress(OSError):  # gone, no socket, or not connected
            _shut_if_of(port, int(name))


def _shut_if_of(port: int, number: int) -> None:
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        return
    with socket.socket(fileno=os.dup(number)) as connection:
        of_network = connection.family in (socket.AF_INET, socket.AF_INET6)
        if of_network and port in (connection.getsockname()[1], connection.getpeername()[1]):
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
    if dist is not None:
        # The default group's name comes from this counter, which one that failed to come up has moved: two ranks that
        # count differently wait for each other in vain.
        dist.distributed_c10d._world.group_count = 0


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
