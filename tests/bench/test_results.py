"""What a run writes, and what it leaves of an earlier one."""

import json
import sys

import pytest
from holdfast_bench import __main__ as bench
from holdfast_bench import registry
from holdfast_bench.model import Figure, Outcome, Row

ISSUE = [
    "node_to_step",
    "spare_to_step",
    "detect_node",
    "parity_throughput",
    "replication_throughput",
    "replication_slowdown",
    "parity_memory",
    "model",
]


def test_a_plain_run_measures_the_whole_table_in_its_order():
    assert list(registry.choose(""))[-len(ISSUE) :] == ISSUE


class Run:
    """Runs whose figures cost nothing; each has the value that it is told."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch, self.value = folder, monkeypatch, 1.0
        self.figures = {name: self.measure for name in ("first", "second", "third")}
        monkeypatch.setattr(registry, "FIGURES", self.figures)
        monkeypatch.setattr(registry, "ASKED_FOR", {"asked_for": self.measure})
        monkeypatch.setattr(bench, "sweep", list)

    def measure(self, context):
        return Outcome(Figure(self.value, "s", "<= 2 s", True, samples=[self.value]), [Row("a case", "ours", "s", self.value)])

    def __call__(self, value, *arguments):
        self.value = value
        self.patch.setattr(sys, "argv", ["holdfast_bench", "--out", str(self.folder), *arguments])
        assert bench.main() == 0
        return json.loads((self.folder / "bench.json").read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


def values(document):
    return {name: figure["value"] for name, figure in document["figures"].items()}


def test_some_figures_are_added_to_those_that_are_there(run):
    before = run(1.0)
    after = run(2.0, "--only", "second")
    assert list(values(after).items()) == [("first", 1.0), ("second", 2.0), ("third", 1.0)]
    assert {part: list(after[part]) for part in ("rows", "cases", "measured")} == {
        part: ["first", "second", "third"] for part in ("rows", "cases", "measured")
    }
    assert after["measured"]["first"] == before["measured"]["first"]
    assert after["measured"]["second"]["at"] >= before["measured"]["second"]["at"]
    table = (run.folder / "bench.md").read_text()
    assert "| second | 2.00 |" in table
    assert "| first | 1.00 |" in table


def test_when_and_how_each_was_measured_is_kept(run):
    run(1.0, "--only", "third", "--scale", "0.5")
    document = run(2.0, "--only", "first")
    assert {name: how["scale"] for name, how in document["measured"].items()} == {"first": 1.0, "third": 0.5}
    assert all(how["at"].endswith("Z") and how["seconds"] >= 0 and how["machine"] for how in document["measured"].values())
    assert document["measured"]["third"]["at"] in (run.folder / "bench.md").read_text(), "not of this run"


def test_a_whole_run_leaves_what_it_does_not_measure_and_nothing_else(run):
    run(1.0, "--only", "asked_for")
    assert values(run(2.0)) == {"first": 2.0, "second": 2.0, "third": 2.0, "asked_for": 1.0}
    del run.figures["second"]
    assert "second" not in values(run(3.0, "--only", "first")), "a figure that is no more"


@pytest.mark.parametrize("left", ["", "[]", '{"figures": {"first": {"value": 1}}, "rows": []}', '{"figures": 1}'])
def test_a_file_that_can_not_be_read_is_no_reason_not_to_measure(run, left):
    (run.folder / "bench.json").write_text(left)
    assert values(run(2.0, "--only", "second")) == {"second": 2.0}
