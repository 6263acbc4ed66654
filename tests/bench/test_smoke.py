"""One tiny case from end to end: worker processes, the socket between them, rounds, a figure."""

import os
from pathlib import Path

import pytest
from holdfast_bench.cases import parity, small, tensors
from holdfast_bench.context import Context
from holdfast_bench.link import Failed, Worker
from holdfast_bench.processes import marked

pytestmark = [pytest.mark.slow, pytest.mark.torch]

TINY = Context(scale=1 / 512, samples=2, peers=False)


@pytest.fixture
def shm():
    """What lies in shared memory under our names."""
    return lambda: sorted(Path("/dev/shm").glob(f"*holdfast-bench-{os.getpid()}-*"))


def test_a_worker_saves_restores_and_leaves_nothing_behind(shm):
    before = shm()
    with Worker("torch-save", "tensors") as worker:
        opened = worker.ask("open", kind="uniform", nbytes=1 << 20)
        assert opened["tensors"] == 256
        assert worker.ask("save")["stall"] > 0
        assert worker.ask("restore")["restore"] > 0
        assert marked(worker.mark)
    assert not marked(worker.mark)
    assert shm() == before


def test_what_breaks_in_a_worker_is_an_error_here_and_the_worker_goes_on():
    with Worker("none", "tensors") as worker:
        worker.ask("open", kind="uniform", nbytes=1 << 20)
        with pytest.raises(Failed, match="nothing was saved"):
            worker.ask("restore")
        assert worker.ask("bound")["seconds"] > 0


def test_a_worker_that_dies_is_told_with_its_last_words(shm):
    before = shm()
    with Worker("none", "tensors") as worker:
        worker.ask("open", kind="uniform", nbytes=1 << 20)
        os.kill(worker.pid, 9)
        with pytest.raises(Failed, match="died"):
            worker.ask("bound")
    assert shm() == before


def test_our_stall_beside_a_peer_gives_a_figure():
    outcome = tensors.capture_throughput(TINY)
    assert outcome.figure.value is not None
    assert outcome.figure.value > 0
    assert len(outcome.figure.samples) == TINY.samples


def test_frozen_tensors_are_copied_once():
    assert small.lora_bytes(TINY).figure.holds


def test_parity_is_made_and_a_lost_image_rebuilt_with_either_code(shm):
    before = shm()
    outcome = parity.parity_throughput(TINY)
    assert outcome.figure.value > 0
    assert [row.name for row in outcome.rows] == 3 * ["Holdfast: encode", "Holdfast: rebuild"]
    assert outcome.figure.value == min(row.ratio for row in outcome.rows)
    assert shm() == before
