"""The job's pods as last seen, where answers, events and lists overtake each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_api import FakeApi
from holdfast_core.planner import CreatePod
from holdfast_operator import spec
from holdfast_operator.apply import Applier
from holdfast_operator.cache import PodCache
from holdfast_operator.settings import Settings
from operator_samples import job

Body = dict[str, Any]


class Overtaken(FakeApi):
    """Events of a pod come before the answer to its creation: `told` has (kind, phase) of each."""

    def __init__(self, cache: PodCache, told: list[tuple[str, str]]) -> None:
        super().__init__()
        self.cache, self.told = cache, told

    async def create(self, path: str, body: Body) -> Body:
        made = await super().create(path, body)
        for kind, phase in self.told:
            self.cache.event(kind, made | {"status": {"phase": phase}})
        return made


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], [None]),  # there at once: the next pass must not order it again
        ([("ADDED", "Pending")], ["Pending"]),
        ([("ADDED", "Pending"), ("MODIFIED", "Running")], ["Running"]),
        ([("ADDED", "Pending"), ("DELETED", "Pending")], []),
    ],
)
def test_the_answer_to_a_creation_is_older_than_what_the_watch_told(told: list[tuple[str, str]], expected: list[str | None]):
    cache = PodCache()
    applier = Applier(Overtaken(cache, told), Settings("sidecar:1"), cache)  # type: ignore[arg-type]
    for _ in range(2):  # a name is made again once it is free
        cache.listed([], cache.changes)
        applier._api.objects.clear()  # type: ignore[attr-defined]
        asyncio.run(applier.apply(spec.parse(job()), 0, [CreatePod(0, 1)]))
        assert [p.get("status", {}).get("phase") for p in cache.pods] == expected


def pod(name: str) -> Body:
    return {"metadata": {"name": name}}


def test_a_list_that_was_overtaken_by_a_creation_is_not_believed():
    cache = PodCache()
    before = cache.changes
    cache.expect("a")
    cache.made(pod("a"))
    assert not cache.listed([], before)
    assert [p["metadata"]["name"] for p in cache.pods] == ["a"]


def test_what_was_told_of_others_is_no_news_of_a_pod():
    cache = PodCache()
    cache.expect("a")
    cache.event("DELETED", pod("b"))
    cache.made(pod("a"))
    assert cache.pods == (pod("a"),)
