"""Blocking work in threads that can be told to stop: it looks between two pieces, and its sockets are shut down."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits for the work any more."""


class Stop:
    """A flag that also wakes whoever waits on one of the given sockets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._sockets: set[socket.socket] = set()
        self._children: list[Stop] = []

    def check(self) -> None:
        """Raise Stopped if it is time."""
        if self._set:
            raise Stopped

    @property
    def is_set(self) -> bool:
        """Whether it is time."""
        return self._set

    def child(self) -> Stop:
        """A flag for a part of the work: it can be set alone, and is with this one."""
        made = Stop()
        with self._lock:
            self.check()
            self._children.append(made)
        return made

    def watch(self, sock: socket.socket) -> None:
        """Shut this socket down when it is time."""
        with self._lock:
            self.check()
            self._sockets.add(sock)

    def forget(self, sock: socket.socket) -> None:
        """The socket is closed."""
        with self._lock:
            self._sockets.discard(sock)

    def set(self) -> None:
        """It is time."""
        with self._lock:
            self._set = True
            for sock in self._sockets:
                shut(sock)
            for child in self._children:
                child.set()


def shut(sock: socket.socket) -> None:
    """End both directions, whoever is blocked in them. Not the method of an SSLSocket: it would go on in plain text."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


async def in_thread(name: str, work: Callable[[Stop], T]) -> T:
    """Run `work` in a daemon thread: one that is stuck must not keep the process from ending. Cancellation sets its flag."""
    loop, stop = asyncio.get_running_loop(), Stop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(finish: Callable[[], None]) -> None:
        if not future.done():
            finish()

    def run() -> None:
        finish: Callable[[], None]
        try:
            finish = partial(future.set_result, work(stop))
        except BaseException as error:  # noqa: BLE001 - handed to the waiting coroutine
            finish = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(settle, finish)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await future
    finally:
        stop.set()
