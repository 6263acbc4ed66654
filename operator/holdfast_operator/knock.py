"""A knock at a silent pod: a plain TCP connect. The sidecars look after each other in the same way (`peers.probes`)."""

from __future__ import annotations

import asyncio
import socket

from holdfast_core.knock import answered

_PATIENCE = 0.7  # seconds


async def knock(host: str, port: int) -> bool | None:
    """Whether it was answered; None if the reason lies here (no file descriptors, for example)."""
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return None
    with sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except TimeoutError:
            return _answered_meanwhile(sock)
        except OSError as error:
            return answered(error.errno)
        return True


def _answered_meanwhile(sock: socket.socket) -> bool:
    """Ask the kernel: an event loop that was held up runs into its time-out before it sees what came in time."""
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        return answered(failure) is True
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
