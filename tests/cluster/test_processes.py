"""The processes that the local cluster starts and finds again: daemons, programs, parts that wait for each other."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from holdfast_cluster import cleanup, environs
from holdfast_cluster.config import MARKER, ClusterError, Paths
from holdfast_cluster.daemon import Daemon, recall, remember
from holdfast_cluster.progress import Part, Reporter, run_parts
from holdfast_cluster.shell import resume, run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", cache=tmp_path / "cache", source=REPOSITORY / "cluster")


def test_a_pid_that_was_reused_is_not_ours(tmp_path):
    file = tmp_path / "x.json"
    remember(file, os.getpid())
    assert recall(file) == os.getpid()
    file.write_text(json.dumps({"pid": os.getpid(), "started": 1}))
    assert recall(file) is None


def test_a_daemon_starts_is_found_by_its_marker_and_stops(paths):
    daemon = Daemon("sleeper", paths)
    pid = daemon.start(["sleep", "60"])
    try:
        assert daemon.alive()
        assert pid in cleanup.members(paths)
    finally:
        assert daemon.stop()
    assert not daemon.stop()
    assert cleanup.members(paths) == []


def test_a_process_in_the_middle_of_its_start_is_waited_for(tmp_path):
    """Seen in one run of two hundred: the one that had just started a daemon did not find it."""
    entry = tmp_path / str(os.getpid())
    entry.mkdir()
    stat = Path("/proc/self/stat").read_text()
    before, fields = stat.rpartition(")")[0], stat.rpartition(")")[2].split()
    (entry / "environ").touch()
    (entry / "stat").write_text(" ".join([before + ")", *fields[:48], "0", *fields[49:]]))

    def laid_out() -> None:
        for name, text in (("environ", f"A=1\0{MARKER}=/here\0"), ("stat", stat)):
            (tmp_path / name).write_text(text)
            os.replace(tmp_path / name, entry / name)  # the kernel never shows half a file

    timer = threading.Timer(0.1, laid_out)
    timer.start()
    assert cleanup._markers(tmp_path) == {os.getpid(): "/here"}
    timer.join()


def test_an_environment_that_comes_between_the_two_looks_is_seen(tmp_path, monkeypatch):
    """It was empty, and when its process was looked at that was whole: once in a hundred and thirty starts."""
    (tmp_path / "environ").touch()

    def laid_out_by_now(entry: Path) -> bool:
        (entry / "environ").write_bytes(b"A=1\0")
        return False

    monkeypatch.setattr(environs, "_in_exec", laid_out_by_now)
    assert environs.environ(tmp_path) == b"A=1\0"


def test_a_process_without_an_environment_is_not_waited_for(tmp_path):
    entry = tmp_path / str(os.getpid())
    entry.mkdir()
    (entry / "environ").touch()
    (entry / "stat").write_text(Path("/proc/self/stat").read_text())
    begun = time.monotonic()
    assert environs.environ(entry, patience=60) == b""
    assert time.monotonic() - begun < 30


def test_a_daemon_that_dies_at_its_start_shows_its_log(paths):
    daemon = Daemon("broken", paths)
    daemon.start(["sh", "-c", "echo it hurts; exit 3"])
    with pytest.raises(ClusterError, match="it hurts"):
        daemon.wait_ready(lambda: False, timeout=10)


def test_a_failing_program_shows_its_output():
    with pytest.raises(ClusterError, match=r"exited 4:\nbad thing"):
        run(["sh", "-c", "echo bad thing; exit 4"])


def test_a_hanging_program_is_killed():
    with pytest.raises(ClusterError, match="longer than"):
        run(["sleep", "60"], timeout=0.2)


def test_a_missing_program_says_how_to_get_it():
    with pytest.raises(ClusterError, match="prepare"):
        run(["holdfast-no-such-program"])


def test_parts_wait_for_their_needs_and_a_failure_stops_the_rest(capsys):
    done = []
    parts = {
        "b": Part(lambda: done.append("b") or "", needs=("a",)),
        "a": Part(lambda: done.append("a") or ""),
    }
    assert run_parts(parts, Reporter()).keys() == {"a", "b"}
    assert done == ["a", "b"]

    def fails() -> str:
        raise ClusterError("no disk")

    try:
        with pytest.raises(ClusterError, match="no disk"):
            run_parts({"x": Part(fails), "slow": Part(lambda: run(["sleep", "60"]))}, Reporter())
    finally:
        resume()
