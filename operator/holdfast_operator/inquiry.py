"""Asking a sidecar what the stores hold: slow (it lists buckets), so in the background; the answer is for one stage only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from holdfast_core.messages import Inventory, StoreInventory
from holdfast_core.planner import Job, Status
from holdfast_core.wire import WireError

Key = tuple[int, str, float]
_PAUSE = 1.0  # seconds between questions
_FRESH = 10.0  # seconds that an answer is good for


class Inquiry:
    """At most one question at a time. An answer that was used and found wanting is dropped, so that asking again asks."""

    def __init__(self, fetch: Callable[[str], Awaitable[Inventory]], wake: Callable[[], None]) -> None:
        self._fetch, self._wake = fetch, wake
        self._task: asyncio.Task[None] | None = None
        self._key: Key | None = None
        self._answer: Inventory | None = None
        self._asked = self._answered = -1e9

    def answer(self, status: Status) -> Inventory | None:
        """The answer for the present attempt and stage, if there is one."""
        fresh = time.monotonic() - self._answered <= _FRESH
        return self._answer if fresh and self._key == _key(status) else None

    def ask(self, pod: str, job: Job, status: Status) -> None:
        """Ask anew, unless the same question is under way."""
        now = time.monotonic()
        if self._key != _key(status):
            self._cancel()
            self._asked = -1e9
        if self._task is not None:
            return
        self._key, self._answer = _key(status), None
        delay = max(0.0, self._asked + _PAUSE - now)
        self._task = asyncio.create_task(self._run(pod, job, delay), name=f"inventory from {pod}")

    async def close(self) -> None:
        """Stop asking."""
        task = self._task
        self._cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, pod: str, job: Job, delay: float) -> None:
        await asyncio.sleep(delay)
        self._asked = time.monotonic()
        try:
            self._answer = await self._fetch(pod)
        except (OSError, TimeoutError, WireError) as error:
            self._answer = _unanswered(pod, job, error)
        self._answered = time.monotonic()
        self._task = None
        self._wake()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task, self._answer = None, None


def _key(status: Status) -> Key:
    return status.attempt, status.stage, status.stage_since


def _unanswered(pod: str, job: Job, error: BaseException) -> Inventory:
    """No answer is an answer: no store could be read, and here is why."""
    text = f"the sidecar of {pod} did not say what is there: {error or type(error).__name__}"
    return Inventory(tuple(StoreInventory(name, error=text) for name in job.stores))
