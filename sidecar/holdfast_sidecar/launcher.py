"""The launcher beside us (PID 1 of the trainer container): what it told last, and what it is to do.

It may come and go at any time. What it should do is said again on each connection, and all of it is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from holdfast_core.local import Finish, Hello, Launch, Message, Stop, pack

from .ranks import Ranks

RETURN_SECONDS = 3.0  # a launcher that lives is back within half a second
_log = logging.getLogger(__name__)


class Launcher:
    """At most one connection. `changed` is called whenever what is known about processes changes."""

    def __init__(self, ranks: Ranks, attempt: Callable[[], int], changed: Callable[[], None]) -> None:
        self._ranks, self._attempt, self._changed = ranks, attempt, changed
        self._writer: asyncio.StreamWriter | None = None
        self._hello: Hello | None = None
        self._wish: Message | None = None
        self._left_at = time.monotonic()
        self._news = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether it is there."""
        return self._writer is not None

    def greeted(self, writer: asyncio.StreamWriter, hello: Hello) -> None:
        """Its first line, and each later one."""
        returned = self._writer is not writer
        if returned and self._writer is not None:
            self._writer.close()
        self._writer, self._hello = writer, hello
        self._take_over(hello)
        if returned:
            self._say(self._wish)
        self._news.set()
        self._changed()

    def _take_over(self, hello: Hello) -> None:
        current = self._attempt()
        if hello.attempt == current:
            self._ranks.seen(hello.processes)
        elif hello.attempt < current and self._ranks.started:
            self._ranks.lose("the trainer container was restarted")
            if isinstance(self._wish, Launch):
                self._wish = None  # an attempt's processes are started once; the next ones belong to the next attempt
        elif hello.attempt < current and self._wish is None and any(not p.ended for p in hello.processes):
            self._say(Stop(current - 1, 0.0))

    def gone(self, writer: asyncio.StreamWriter) -> None:
        """The connection has ended."""
        if self._writer is writer:
            self._writer, self._left_at = None, time.monotonic()
            self._changed()

    async def watch(self) -> None:
        """Give up the processes of a launcher that does not come back: they die with it. Never ends."""
        while True:
            await asyncio.sleep(RETURN_SECONDS / 4)
            missing = not self.connected and time.monotonic() - self._left_at > RETURN_SECONDS
            if missing and self._ranks.alive:
                _log.warning("the launcher is gone: its processes are taken for lost")
                self._ranks.lose("the trainer container is gone")
                self._changed()

    # --- orders

    def launch(self, order: Launch) -> None:
        """Start an attempt's processes."""
        self._order(order)

    def finish(self, exit_code: int) -> None:
        """Exit."""
        self._order(Finish(exit_code))

    def stop(self, attempt: int, grace: float) -> None:
        """End the processes of attempts up to this one."""
        self._order(Stop(attempt, grace))

    def _order(self, message: Message) -> None:
        self._wish = message
        self._say(message)

    def _say(self, message: Message | None) -> None:
        if message is not None and self._writer is not None:
            self._writer.write(pack(message))

    async def stopped(self, attempt: int, grace: float, limit: float) -> bool:
        """Order a stop and wait until no process of attempts up to `attempt` is left; False if time runs out.

        Without a launcher there are no processes. One that lives shows up soon after we do, so it is given that time.
        """
        self.stop(attempt, grace)
        deadline = time.monotonic() + grace + limit
        while time.monotonic() < deadline:
            self._news.clear()
            if self._has_stopped(attempt):
                return True
            try:
                async with asyncio.timeout(0.1):
                    await self._news.wait()
            except TimeoutError:
                continue
        return False

    def _has_stopped(self, attempt: int) -> bool:
        if not self.connected:
            return time.monotonic() - self._left_at > RETURN_SECONDS
        if self._hello is None or self._hello.attempt > attempt:
            return True
        return all(p.ended for p in self._hello.processes)
