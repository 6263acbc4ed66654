"""The job's object between the API server's answers and what its watch shows meanwhile: an event may overtake an answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from fake_api import FakeApi
from holdfast_operator import reconciler
from holdfast_operator.api import ApiError
from holdfast_operator.keeper import Gone, Keeper
from operator_samples import job
from operator_waiting import until
from reconciler_bench import JOB, Bench, run

Body = dict[str, Any]


class SlowApi(FakeApi):
    """Answers are under way for a moment: `meanwhile` happens once the server has done what it was asked, and before it is
    heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] | None = None

    async def get(self, path: str, **query: str) -> Body:
        return self._late(await super().get(path, **query))

    async def replace(self, path: str, body: Body) -> Body:
        return self._late(await super().replace(path, body))

    def _late(self, answer: Body) -> Body:
        happens, self.meanwhile = self.meanwhile, None
        if happens:
            happens()
        return answer


class Desk:
    """A keeper, its API server, and the user who edits and deletes."""

    def __init__(self) -> None:
        self.api = SlowApi()
        self.uid = self.api.put(JOB, job())["metadata"]["uid"]
        self.keeper = Keeper(self.api, "team", "gpt", self.uid)  # type: ignore[arg-type]

    def edit(self) -> None:
        body = copy.deepcopy(self.api.objects[JOB])
        body["spec"]["workers"]["spares"] = 7
        self.keeper.announce(self.api.put(JOB, body)["metadata"]["resourceVersion"])

    def delete(self) -> None:
        del self.api.objects[JOB]
        self.keeper.distrust()

    def reads(self) -> int:
        return self.api.journal.count(("GET", JOB))

    @property
    def spares(self) -> int:
        spares: int = self.keeper.body["spec"]["workers"].get("spares", 0)
        return spares


async def write(desk: Desk) -> None:
    await desk.keeper.write({"phase": "Running"}, 1000.0)


async def read(desk: Desk) -> None:
    desk.keeper.distrust()
    await desk.keeper.load()


@pytest.mark.parametrize("call", [write, read])
def test_an_edit_that_overtakes_an_answer_is_read(call):
    async def story() -> None:
        desk = Desk()
        await desk.keeper.load()
        desk.api.meanwhile = desk.edit
        await call(desk)
        assert desk.spares == 0
        await desk.keeper.load()
        assert desk.spares == 7

    asyncio.run(story())


@pytest.mark.parametrize("call", [write, read])
def test_a_deletion_that_overtakes_an_answer_is_found(call):
    async def story() -> None:
        desk = Desk()
        await desk.keeper.load()
        desk.api.meanwhile = desk.delete
        await call(desk)
        with pytest.raises(Gone):
            await desk.keeper.load()

    asyncio.run(story())


def test_own_writes_are_not_read_again():
    async def story() -> None:
        desk = Desk()
        await desk.keeper.load()
        for _ in range(3):
            desk.api.meanwhile = lambda: desk.keeper.announce(desk.api.objects[JOB]["metadata"]["resourceVersion"])
            await write(desk)
            await desk.keeper.load()
        desk.keeper.announce(desk.keeper.body["metadata"]["resourceVersion"])
        await desk.keeper.load()
        assert desk.reads() == 1

    asyncio.run(story())


def test_what_was_announced_is_read_once():
    async def story() -> None:
        desk = Desk()
        await desk.keeper.load()
        desk.edit()
        for _ in range(3):
            await desk.keeper.load()
        assert desk.reads() == 2

    asyncio.run(story())


def test_a_read_that_failed_is_tried_again():
    async def story() -> None:
        desk = Desk()
        await desk.keeper.load()
        desk.edit()

        def down(method: str, path: str) -> None:
            raise ApiError(503, "ServiceUnavailable", path)

        desk.keeper.distrust()
        desk.api.refusals.append(down)
        with pytest.raises(ApiError):
            await desk.keeper.load()
        desk.api.refusals.clear()
        desk.keeper.announce(desk.keeper.body["metadata"]["resourceVersion"])  # an old event, late
        await desk.keeper.load()
        assert desk.spares == 7

    asyncio.run(story())


def test_a_refused_job_is_read_now_and_then_since_events_may_be_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(reconciler, "_RELIST", 0.3)

    async def story(bench: Bench) -> None:
        good = bench.api.objects[JOB]
        bench.change(good | {"spec": good["spec"] | {"failurePolicy": {"restarts": {"window": "soon"}}}})
        await until(lambda: bench.condition("Accepted").get("reason") == "InvalidSpec")
        bench.api.put(JOB, bench.api.objects[JOB] | {"spec": good["spec"]})  # and nobody tells
        await until(lambda: len(bench.pods()) == 2, 10.0)
        await until(lambda: bench.condition("Accepted").get("status") == "True")

    run(tmp_path, story)
