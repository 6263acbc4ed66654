"""What fails together with a pod: the value of the job's label on its node, else the node."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Mapping

import pytest
from fake_api import FakeApi
from holdfast_operator import lookups
from holdfast_operator.api import ApiError
from holdfast_operator.domains import Domains
from holdfast_operator.pods import HOSTNAME

ZONE = "topology.kubernetes.io/zone"


class Bench:
    """Nodes n0, n1, ... with these labels."""

    def __init__(self, *labels: Mapping[str, str]) -> None:
        self.api = FakeApi()
        for number, found in enumerate(labels):
            self.label(f"n{number}", found)
        self.domains = Domains(self.fetch, lambda: None)

    def label(self, node: str, labels: Mapping[str, str]) -> None:
        self.api.put(f"/api/v1/nodes/{node}", {"metadata": {"name": node, "labels": dict(labels)}})

    async def fetch(self, node: str) -> Mapping[str, str]:
        return await lookups.node_labels(self.api, node)  # type: ignore[arg-type]

    async def of(self, node: str, topology: str = ZONE) -> str:
        self.domains.of(node, topology)
        await asyncio.gather(*self.domains._labels._tasks.values())
        return self.domains.of(node, topology)


@pytest.mark.parametrize(
    ("labels", "topology", "expected"),
    [
        ({ZONE: "a"}, ZONE, "a"),
        ({ZONE: "a"}, HOSTNAME, "n0"),
        ({ZONE: "a"}, "topology.kubernetes.io/zoen", "n0"),  # a typo
        ({ZONE: ""}, ZONE, "n0"),
        ({}, ZONE, "n0"),
    ],
)
def test_what_fails_together_with_a_pod(labels: Mapping[str, str], topology: str, expected: str):
    bench = Bench(labels)
    assert asyncio.run(bench.of("n0", topology)) == expected


def test_a_pod_without_a_node_is_in_no_domain():
    assert asyncio.run(Bench().of("")) == ""


def test_a_node_that_can_not_be_asked_counts_by_itself():
    bench = Bench({ZONE: "a"})

    def down(method: str, path: str) -> None:
        raise ApiError(503, "ServiceUnavailable", path)

    bench.api.refusals.append(down)
    assert asyncio.run(bench.of("n0")) == "n0"


def test_domains_stay_while_an_attempt_runs_since_its_groups_were_made_from_them(monkeypatch: pytest.MonkeyPatch):
    async def story() -> None:
        bench = Bench({ZONE: "a"}, {ZONE: "a"})
        assert await bench.of("n0") == "a"
        bench.domains.settled(True)
        bench.label("n0", {ZONE: "b"})
        monkeypatch.setattr(lookups, "time", types.SimpleNamespace(monotonic=lambda: 1e12))
        assert await bench.of("n0") == "a"
        assert await bench.of("n1") == "a", "of a node that is new"
        bench.domains.settled(False)
        assert await bench.of("n0") == "b"

    asyncio.run(story())


def test_what_is_not_known_yet_is_not_kept():
    """After a restart of the operator the attempt runs, and its labels are yet to come."""

    async def story() -> None:
        bench = Bench({ZONE: "a"})
        bench.domains.settled(True)
        assert bench.domains.of("n0", ZONE) == "n0"
        assert await bench.of("n0") == "a"

    asyncio.run(story())
