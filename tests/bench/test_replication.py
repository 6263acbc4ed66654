"""The figures of the peers' RAM from end to end, tiny: pods in namespaces of their own, and pods on loopback."""

import os
import shutil
import subprocess

import pytest
from holdfast_bench.cases import replication
from holdfast_bench.context import Context
from holdfast_bench.namespaces import cable

pytestmark = pytest.mark.slow
TINY = Context(scale=1 / 256, samples=2, peers=False)
needs_namespaces = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")


def namespaces() -> set[str]:
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in names.splitlines() if line.startswith("hfbench")}


@needs_namespaces
def test_replication_is_measured_beside_bare_sockets_and_leaves_no_namespace():
    before = namespaces()
    outcome = replication.replication_throughput(TINY)
    assert outcome.figure.value is not None
    assert len(outcome.figure.samples) == TINY.samples
    assert {row.name for row in outcome.rows} >= {"Holdfast, plain", "Holdfast, mTLS"}
    assert namespaces() == before


@needs_namespaces
def test_namespaces_are_removed_when_something_breaks_in_them():
    before = namespaces()
    with pytest.raises(AssertionError, match="broken"), cable():
        assert namespaces() == before, "broken"
    assert namespaces() == before


def test_memory_for_parity_is_two_shares_of_a_snapshot():
    outcome = replication.parity_memory(TINY)
    assert outcome.figure.value == pytest.approx(2 / 3, rel=0.2)
    assert outcome.details["slots_needed"] == 3
    assert outcome.details["whole"] == 2
