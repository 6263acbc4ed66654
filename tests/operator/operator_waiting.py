"""Waiting for a condition, bounded; stories played in an event loop; and addresses that never answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeVar


class Closing(Protocol):
    """What a story is played on."""

    async def close(self) -> None: ...


B = TypeVar("B", bound=Closing)


def play(make: Callable[[], B], story: Callable[[B], Awaitable[None]]) -> None:
    """A test's story, bounded, on a bench of its own that is closed afterwards."""

    async def go() -> None:
        bench = make()
        try:
            await asyncio.wait_for(story(bench), 90)
        finally:
            await bench.close()

    asyncio.run(go())


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Fail if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come true in time")
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def unanswering(host: str, port: int) -> Iterator[None]:
    """A listener that accepts nothing: its backlog is full, so that a dial gets no answer at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield
