"""Taints on nodes that a job avoids: added to what is there, taken back, and never anybody else's."""

from __future__ import annotations

import asyncio
from typing import Any

from fake_api import FakeApi
from holdfast_core.planner import TaintNode, UntaintNode
from holdfast_operator import taints
from holdfast_operator.api import ApiError
from holdfast_operator.taints import Taints

NODE = "/api/v1/nodes/n1"
THEIRS = {"key": "gpu", "value": "broken", "effect": "NoExecute"}
OURS = {"key": "holdfast.dev/suspect", "value": "gpt-01234", "effect": "NoSchedule"}
OF_ANOTHER_JOB = OURS | {"value": "bert-99999"}


class Bench:
    def __init__(self, *present: dict[str, Any], enabled: bool = True) -> None:
        self.api = FakeApi()
        self.api.put(NODE, {"metadata": {"name": "n1"}, "spec": {"taints": list(present)}})
        self.taints = Taints(self.api, "gpt", "0123456789", enabled)  # type: ignore[arg-type]

    def do(self, *actions: Any) -> Any:
        asyncio.run(self.taints.apply(actions))
        return self.api.objects[NODE]["spec"]["taints"]


def test_a_taint_is_added_once_and_taken_back_once():
    bench = Bench(THEIRS)
    for _ in range(3):
        assert bench.do(TaintNode("n1")) == [THEIRS, OURS]
    assert len(bench.api.journal) == 2  # read, patched, remembered
    for _ in range(3):
        assert bench.do(UntaintNode("n1")) == [THEIRS]
    assert len(bench.api.journal) == 4


def test_another_jobs_taint_stays():
    bench = Bench(OF_ANOTHER_JOB)
    assert bench.do(TaintNode("n1")) == [OF_ANOTHER_JOB]
    assert bench.do(UntaintNode("n1")) == [OF_ANOTHER_JOB]
    assert bench.api.written("PATCH") == []


def test_a_node_that_another_job_has_tainted_gets_ours_when_theirs_goes(monkeypatch):
    bench = Bench(OF_ANOTHER_JOB)
    for _ in range(3):
        bench.do(TaintNode("n1"))
    assert len(bench.api.journal) == 1, "looked at once, not by each pass"
    asyncio.run(Taints(bench.api, "bert", "9999999999", True).apply([UntaintNode("n1")]))  # type: ignore[arg-type]
    monkeypatch.setattr(taints.time, "monotonic", lambda: 1e12)
    assert bench.do(TaintNode("n1")) == [OURS]


def test_a_job_whose_taint_was_not_needed_takes_back_nothing():
    bench = Bench(OF_ANOTHER_JOB)
    bench.do(TaintNode("n1"))
    asyncio.run(bench.taints.clear())
    assert bench.api.objects[NODE]["spec"]["taints"] == [OF_ANOTHER_JOB]


def test_nothing_is_done_unless_it_is_switched_on():
    bench = Bench(enabled=False)
    assert bench.do(TaintNode("n1")) == []
    assert bench.api.journal == []


def test_a_job_that_is_gone_leaves_no_taint():
    bench = Bench(THEIRS)
    bench.do(TaintNode("n1"))
    asyncio.run(bench.taints.clear())
    assert bench.api.objects[NODE]["spec"]["taints"] == [THEIRS]


def test_a_node_that_is_gone_needs_none():
    bench = Bench()
    del bench.api.objects[NODE]
    asyncio.run(bench.taints.apply([TaintNode("n1")]))
    assert bench.api.written("PATCH") == []


def test_a_refusal_is_no_reason_to_fail_and_is_tried_again(monkeypatch):
    bench = Bench()

    def forbidden(method: str, path: str) -> None:
        if method == "PATCH":
            raise ApiError(403, "Forbidden", "cannot patch nodes")

    bench.api.refusals.append(forbidden)
    assert bench.do(TaintNode("n1")) == []
    bench.api.refusals.clear()
    assert bench.do(TaintNode("n1")) == [], "not at once"
    monkeypatch.setattr(taints.time, "monotonic", lambda: 1e12)
    assert bench.do(TaintNode("n1")) == [OURS]
