"""What is looked up in the background: how often, and what a failure costs."""

from __future__ import annotations

import asyncio

import pytest
from holdfast_operator import lookups
from holdfast_operator.api import ApiError
from holdfast_operator.lookups import Lookup


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lookups, "time", made)
    return made


class Source:
    """Fails as often as it is told to, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    async def fetch(self, key: str) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ApiError(503, "ServiceUnavailable", "for a moment")
        return f"{key}'s"


def ask(source: Source, clock: Clock, times: list[float], every: float) -> list[str]:
    """What is known at these times, once what was asked for has come."""

    async def go() -> list[str]:
        lookup, found = Lookup(source.fetch, "", every, lambda: None), []
        for at in times:
            clock.now = 1000.0 + at
            lookup.get("n1")
            await asyncio.gather(*lookup._tasks.values())
            found.append(lookup.get("n1"))
        return found

    return asyncio.run(go())


def test_what_is_known_is_not_asked_for_again_until_it_is_old(clock: Clock):
    source = Source(0)
    assert ask(source, clock, [0, 1, 299, 301], 300.0) == ["n1's"] * 4
    assert source.calls == 2


def test_a_failure_is_tried_again_after_seconds(clock: Clock):
    source = Source(1)
    assert ask(source, clock, [0, 1, 3], 300.0) == ["", "", "n1's"]
    assert source.calls == 2


def test_what_fails_again_and_again_is_asked_for_less_and_less_often(clock: Clock):
    source = Source(10**6)
    ask(source, clock, [float(second) for second in range(3600)], 300.0)
    assert 8 <= source.calls <= 20
    often = Source(10**6)
    ask(often, clock, [float(second) for second in range(60)], 2.0)
    assert often.calls >= 15, "no more seldom than if it worked"
