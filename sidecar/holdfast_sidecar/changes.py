"""Tells the event streams that something changed: at once, or with the next beat of five a second."""

from __future__ import annotations

import asyncio
import time

_BEAT = 0.2  # seconds; progress is sent this often
_HEARTBEAT = 0.5  # seconds; sent this often in any case


class Subscription:
    """One stream's view: `wait` returns when the state should be sent again."""

    def __init__(self) -> None:
        self._now = asyncio.Event()
        self._dirty = False
        self._sent = 0.0

    def touch(self, *, urgent: bool) -> None:
        """Something changed."""
        self._dirty = True
        if urgent:
            self._now.set()

    async def wait(self) -> None:
        """Until there is an urgent change, another change and a beat has passed, or the heartbeat is due."""
        while not self._due(time.monotonic() - self._sent):
            try:
                async with asyncio.timeout(_BEAT):
                    await self._now.wait()
            except TimeoutError:
                continue
        self._now.clear()
        self._dirty = False
        self._sent = time.monotonic()

    def _due(self, age: float) -> bool:
        return self._now.is_set() or (self._dirty and age >= _BEAT) or age >= _HEARTBEAT


class Changes:
    """All subscriptions."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        """A new stream; its first `wait` returns at once."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """The stream has ended."""
        self._subscriptions.discard(subscription)

    def touch(self, *, urgent: bool = True) -> None:
        """Tell everybody."""
        for subscription in self._subscriptions:
            subscription.touch(urgent=urgent)
