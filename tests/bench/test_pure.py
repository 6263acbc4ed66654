"""Statistics, tables, verdicts, time stamps, memory maps: what needs no process."""

import gc
import json
import subprocess

import pytest
from holdfast_bench import registry, report, smaps, stats
from holdfast_bench.jobs.stamps import Stamp, recovered
from holdfast_bench.machine import pinned
from holdfast_bench.model import Figure, Outcome, Row, to_json
from holdfast_bench.processes import new_mark, sweep
from holdfast_bench.systems import PEERS, by_name, title

IDS = [
    "snapshot_return",
    "loop_slowdown",
    "capture_throughput",
    "restore_throughput",
    "many_small",
    "crash_to_step",
    "trainer_overhead",
    "lora_bytes",
]


def outcome(value=1.5, holds=True):
    rows = [Row("1 GiB", "ours", "ms", 1.5, bound=80.0, ratio=0.01), Row("1 GiB", "peer|x", "ms", note="no GPU")]
    return Outcome(Figure(value, "ms", "<= 2 ms", holds, 12.0, 80.0, [1.0, 1.5, 2.0]), rows, {"more": 1})


def test_one_disturbed_pair_does_not_move_the_ratio():
    quiet = [(2.0, 1.0)] * 4
    disturbed = [*quiet, (900.0, 1.0)]
    assert stats.paired([a for a, _ in disturbed], [b for _, b in disturbed]) == 2.0


def test_drift_that_hits_both_cancels():
    bound = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert stats.paired([3 * b for b in bound], bound) == 3.0


def test_unequal_numbers_do_not_pair():
    with pytest.raises(ValueError, match="do not pair"):
        stats.paired([1.0, 2.0], [1.0])


def test_no_samples_have_no_median():
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])
    assert stats.maybe_median([]) is None


def test_a_rate_is_decimal_gigabytes():
    assert stats.rate(3e9, 2.0) == 1.5
    assert stats.rate(3e9, 0.0) == 0.0


def test_the_json_has_what_was_agreed():
    document = json.loads(json.dumps(to_json({"x": outcome()}, machine={"cpu": "c"}, versions={"torch": "2"}, scale=1.0)))
    assert set(document["figures"]["x"]) == {"value", "unit", "target", "holds", "peer", "bound", "samples"}
    assert document["figures"]["x"]["samples"] == [1.0, 1.5, 2.0]
    assert {"case", "name", "ours", "peer", "bound", "ratio", "note"} <= set(document["rows"]["x"][0])
    assert document["machine"] == {"cpu": "c"}
    assert document["versions"] == {"torch": "2"}


def test_what_was_not_measured_does_not_hold():
    figure = Figure.failed("ms", "<= 2 ms")
    assert figure.value is None
    assert not figure.holds
    assert "not measured" in report.verdict("x", Outcome(figure))


def test_the_verdict_is_loud_when_a_figure_fails():
    assert report.verdict("x", outcome()).endswith(" holds")
    assert report.verdict("x", outcome(9.0, holds=False)).endswith("DOES NOT HOLD")


def test_the_table_is_aligned_and_tells_why_a_peer_is_missing():
    lines = report.terminal({"x": outcome()}).splitlines()
    assert lines[1].index("unit") == lines[2].index("ms") == lines[3].index("ms")
    assert lines[3].endswith("no GPU")


def test_markdown_keeps_its_columns():
    lines = [line for line in report.markdown({"x": outcome()}, "a machine").splitlines() if line.startswith("|")]
    columns = {line.replace("\\|", "").count("|") for line in lines if "ours" in line or "peer" in line}
    assert len(columns) <= 2  # two tables
    assert "peer\\|x" in lines[-1]


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0123456, "0.0123"), (1.234, "1.23"), (99.99, "99.99"), (1234.5, "1234"), (0.0, "0")]
)
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_the_figures_come_in_the_agreed_order():
    assert list(registry.FIGURES)[: len(IDS)] == IDS
    assert list(registry.choose("")) == list(registry.FIGURES)


def test_some_figures_can_be_chosen():
    assert list(registry.choose("lora_bytes, many_small")) == ["lora_bytes", "many_small"]
    with pytest.raises(SystemExit, match="there is no figure 'speed'"):
        registry.choose("many_small,speed")


def test_every_peer_has_a_name_and_one_that_cannot_run_says_why(monkeypatch):
    assert all(title(peer) for peer in PEERS)
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)
    with pytest.raises(Exception, match="needs a GPU"):
        by_name("nvrx")


KILLED_AT = 100.0


def test_recovered_when_both_finished_the_step_of_the_new_process():
    killed = [Stamp(99.9, 1, 7), Stamp(100.4, 3, 8)]
    other = [Stamp(99.9, 2, 7), Stamp(100.5, 2, 8)]
    assert recovered(killed, other, pid=1, at=KILLED_AT) == pytest.approx(0.5)


def test_a_step_that_the_survivor_finished_with_the_dead_does_not_count():
    killed = [Stamp(99.9, 1, 7), Stamp(100.4, 3, 9)]
    other = [Stamp(99.9, 2, 7), Stamp(100.01, 2, 8)]
    assert recovered(killed, other, pid=1, at=KILLED_AT) is None


def test_a_step_done_again_counts_when_it_is_done_again():
    killed = [Stamp(99.9, 1, 7), Stamp(103.0, 3, 5)]
    other = [Stamp(99.5, 2, 5), Stamp(99.9, 2, 7), Stamp(102.0, 4, 5)]
    assert recovered(killed, other, pid=1, at=KILLED_AT) == pytest.approx(3.0)


def test_nothing_is_recovered_before_the_new_process_finished_a_step():
    assert recovered([Stamp(99.9, 1, 7), Stamp(100.1, 1, 8)], [Stamp(101.0, 2, 8)], pid=1, at=KILLED_AT) is None


SMAPS = """\
7f00-7f10 rw-p 00000000 00:00 0
Private_Clean: 4 kB
Private_Dirty: 100 kB
7f10-7f20 rw-s 00000000 00:17 5 /dev/shm/x/rank-00000.g0.arena
Private_Dirty: 5000 kB
7f20-7f30 r--p 00000000 08:01 9 /usr/lib/libc.so.6
Private_Dirty: 20 kB
"""


def test_shared_memory_is_not_the_processs_own():
    assert smaps.private_dirty(SMAPS.splitlines()) == 120 << 10


def test_page_tables_are():
    assert smaps.page_tables(["VmRSS: 5 kB", "VmPTE:\t      64 kB"]) == 64 << 10


def test_this_process_has_memory_of_its_own():
    gc.collect()  # nothing that goes meanwhile may count against the block
    before = smaps.own()
    block = bytearray(b"x") * (128 << 20)
    assert smaps.own() - before > 100 << 20
    del block


def test_what_a_killed_run_left_is_swept_and_a_living_runs_is_not(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    dead, alive = f"holdfast-bench-{gone.pid}-0123456789ab", new_mark()
    (tmp_path / f"{dead}-x_y").mkdir()
    (tmp_path / f"{dead}_ckpt_shm_0").touch()
    (tmp_path / f"{alive}-zz").mkdir()
    (tmp_path / "of-others").touch()
    assert sweep(tmp_path) == [dead]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"{alive}-zz", "of-others"])


def test_the_versions_of_peers_are_those_that_are_pinned():
    assert pinned("x", "x[k8s]==0.6.1\ntorch==2.5.1\nnumpy\n") == {"x": "0.6.1", "x: torch": "2.5.1"}
    assert pinned("y", "torch ; sys_platform == 'never'\n") == {}
