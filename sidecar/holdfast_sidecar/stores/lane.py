"""Runs a store's blocking calls in threads of their own, with a limit on how long one may make no progress.

A file system can hang in the kernel for ever (NFS without its server); such a thread cannot be ended, only left behind. So
each store has its own lane: while one of its calls hangs, further calls fail at once, and nothing else is touched. Threads
are daemons, because an executor's would be joined when the process exits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from .base import StoreError

T = TypeVar("T")
STALL = 20.0  # seconds without progress
_PARALLEL = 4
_LOOK = 0.25  # seconds


class Abandoned(StoreError):
    """Nobody waits for the call any more."""


class Pulse:
    """The work's side of a call: it beats after each piece, and learns there that it should stop."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.heard: Callable[[int], None] = lambda _: None
        self._stopped = threading.Event()

    def beat(self, nbytes: int = 0) -> None:
        """There was progress, by that many bytes. Raises Abandoned if the call was given up."""
        self.last = time.monotonic()
        self.heard(nbytes)
        if self._stopped.is_set():
            raise Abandoned("abandoned")

    def stop(self) -> None:
        """Make the next beat raise."""
        self._stopped.set()


class Lane:
    """Calls to one store: a few at a time, each in a thread."""

    def __init__(self, name: str, stall: float = STALL) -> None:
        self.name, self.stall = name, stall
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._hanging: dict[Pulse, float] = {}

    async def call(self, work: Callable[[Pulse], T], limit: float | None = None) -> T:
        """Run `work` in a thread. `limit` (seconds) bounds the whole call, the stall limit always holds."""
        async with self._slots:
            self._refuse_if_hanging()
            pulse = Pulse()
            future = self._start(work, pulse)
            try:
                return await self._watch(future, pulse, limit)
            finally:
                pulse.stop()

    def _refuse_if_hanging(self) -> None:
        if self._hanging:
            age = time.monotonic() - min(self._hanging.values())
            raise StoreError(f"store {self.name!r} has not answered for {age:.0f} s: check its server; tried again by itself")

    def _start(self, work: Callable[[Pulse], T], pulse: Pulse) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(_consume)

        def run() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, work(pulse))
            except BaseException as error:  # noqa: BLE001 - handed to the waiting coroutine
                settle = partial(future.set_exception, error)
            with suppress(RuntimeError):  # the loop has closed: nobody waits
                loop.call_soon_threadsafe(self._settle, future, pulse, settle)

        threading.Thread(target=run, name=f"store-{self.name}", daemon=True).start()
        return future

    def _settle(self, future: asyncio.Future[T], pulse: Pulse, settle: Callable[[], None]) -> None:
        self._hanging.pop(pulse, None)
        if not future.done():
            settle()

    async def _watch(self, future: asyncio.Future[T], pulse: Pulse, limit: float | None) -> T:
        started = time.monotonic()
        while not future.done():
            await asyncio.wait([future], timeout=_LOOK)
            silent, total = time.monotonic() - pulse.last, time.monotonic() - started
            if not future.done() and (silent > self.stall or (limit is not None and total > limit)):
                self._hanging[pulse] = started
                raise StoreError(f"store {self.name!r} did not answer for {max(silent, total):.0f} s: check its server")
        return future.result()


def _consume(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()  # an abandoned call's error is nobody's
