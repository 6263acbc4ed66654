"""The figure of what replication takes from training, tiny: a job of two real pods, with and without peers."""

import os
from pathlib import Path

import pytest
from holdfast_bench.cases import slowdown
from holdfast_bench.cases.loop import SHAPES
from holdfast_bench.cases.slowdown import Block, Case, Measured
from holdfast_bench.context import Context
from holdfast_bench.environments import Unavailable
from holdfast_bench.pods import Pods
from holdfast_bench.processes import marked
from holdfast_core.config import PeersConfig

TINY = Context(scale=1 / 256, samples=2, peers=False)


def block(*seconds: float) -> Block:
    return Block(list(seconds), 1.0, 0, 0.0, 0, 0, [])


def test_a_block_holds_some_snapshots_however_long_they_take_on_the_line():
    case = Case(SHAPES[0], 1, step=0.5, copy=0.01, nbytes=100_000_000, limit=25_000_000)
    assert case.steps_on_the_line == 8
    assert case.block == 16
    assert Case(SHAPES[0], 1, 0.5, 0.01, nbytes=1_000_000, limit=25_000_000).block == 8
    assert Case(SHAPES[0], 1, 0.01, 0.001, nbytes=1_000_000, limit=25_000_000).block == 100, "rounds have a pace"


def test_what_hits_one_step_in_three_counts():
    found = Measured(Case(SHAPES[0], 1, 1.0, 0.1, 1, 1), on=[block(1.0, 1.0, 1.6)], off=[block(1.0, 1.0, 1.0)])
    assert found.ratios(lambda seconds: sum(seconds) / len(seconds)) == [pytest.approx(1.2)]
    assert found.ratios(slowdown.median) == [1.0]


@pytest.mark.slow
@pytest.mark.torch
def test_steps_are_protected_with_peers_and_not_without_and_nothing_is_left_behind(monkeypatch):
    settle, received = slowdown._settle, []

    def settle_and_note(job: Pods, protects: bool) -> None:
        settle(job, protects)
        received.append(slowdown._received(job) if protects else 0)

    monkeypatch.setattr(slowdown, "_settle", settle_and_note)
    before = sorted(Path("/dev/shm").glob(f"holdfast-bench-{os.getpid()}-*"))
    outcome = slowdown.replication_slowdown(TINY)
    assert outcome.figure.value is not None
    assert len(outcome.figure.samples) == TINY.samples
    (details,) = outcome.details.values()
    assert sum(received) > 0, "steps went to peers' memory"  # a block of the tiny case may be over before its first round
    assert all(b["rounds"] == 0 and b["received"] == 0 for b in details["without"])
    assert "MB/s a pod" in outcome.figure.target, "the limit is said"
    assert sorted(Path("/dev/shm").glob(f"holdfast-bench-{os.getpid()}-*")) == before


@pytest.mark.slow
@pytest.mark.torch
def test_what_breaks_in_a_rank_is_told_and_its_processes_are_ended():
    with Pods("broken", 2, "slowdown", PeersConfig(parity=0), 3) as pods:
        with pytest.raises(Unavailable, match="broken: TypeError"):
            pods.ask("open", layers=1, width="wide", context=4)
        assert marked(pods.mark)
    assert not marked(pods.mark)
