"""The launcher as its sidecar and its container see it: orders, exit codes, signals, groups, logs."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holdfast_core import local

from trainer.fake_sidecar import FakeSidecar, alive, launch, python_env, wait_until

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    fake = FakeSidecar(tmp_path / "agent.sock")
    yield fake
    fake.close()


@pytest.fixture
def start(tmp_path: Path, sidecar: FakeSidecar) -> Iterator[Start]:
    """Start a launcher for a command; every one is gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, **env: str) -> subprocess.Popen[bytes]:
        everything = python_env(**{"HOLDFAST_SOCKET": str(sidecar.path), "HOLDFAST_STANDBY": "off", **env})
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.launcher", "--", *command],
            env=everything, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def script(folder: Path, text: str, name: str = "script.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return name


def finish(process: subprocess.Popen[bytes], sidecar: FakeSidecar, code: int = 0) -> str:
    """Finish the launcher and return its whole log."""
    sidecar.send(local.Finish(code))
    output, _ = process.communicate(timeout=20)
    assert process.returncode == code, output.decode()
    return output.decode()


def test_a_command_runs_with_torchruns_contract(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT OMP_NUM_THREADS HOLDFAST_ATTEMPT X"
    body = f"import os; print('|'.join(os.environ[n] for n in {names!r}.split()))"
    process = start(sys.executable, "-c", body)
    sidecar.send(launch(3, 2, world_size=6, first_rank=4, node_rank=2, nodes=3, env={"X": "y"}))
    assert [p.exit_code for p in sidecar.wait_ended(3)] == [0, 0]
    log = finish(process, sidecar)
    assert "[rank 4] 4|0|6|2|2|127.0.0.1|29500|1|3|y" in log
    assert "[rank 5] 5|1|6|2|2|127.0.0.1|29500|1|3|y" in log


@pytest.mark.parametrize(
    ("body", "code", "number"),
    [
        ("raise SystemExit(7)", 7, None),
        ("pass", 0, None),
        ("raise ValueError('told you')", 1, None),
        ("import os; os.kill(os.getpid(), 9)", None, 9),
        ("import ctypes; ctypes.string_at(0)", None, signal.SIGSEGV),
    ],
)
def test_exits_are_told_precisely(sidecar: FakeSidecar, start: Start, body: str, code: int | None, number: int | None) -> None:
    start(sys.executable, "-c", f"print('last words', flush=True)\n{body}")
    sidecar.send(launch(1))
    (process,) = sidecar.wait_ended(1)
    assert (process.exit_code, process.signal) == (code, number)
    assert "last words" in process.log_tail


def test_a_command_that_is_not_there(sidecar: FakeSidecar, start: Start) -> None:
    start("no-such-command")
    sidecar.send(launch(1))
    (process,) = sidecar.wait_ended(1)
    assert process.exit_code == 127
    assert "no such file" in process.log_tail[-1]


def test_a_command_that_is_not_executable(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    script(tmp_path, "not a program", "plain.txt")
    start("./plain.txt")
    sidecar.send(launch(1))
    (process,) = sidecar.wait_ended(1)
    assert process.exit_code == 126
    assert "is it executable?" in process.log_tail[-1]


def test_stop_ends_whole_groups_and_what_left_them(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    name = script(
        tmp_path,
        """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        escaped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(worker.pid, escaped.pid, flush=True)
        open("pids", "w").write(f"{worker.pid} {escaped.pid}")
        os.rename("pids", "pids.done")
        time.sleep(600)
        """,
    )
    process = start(sys.executable, name)
    sidecar.send(launch(1))
    wait_until((tmp_path / "pids.done").exists)
    pids = [int(p) for p in (tmp_path / "pids.done").read_text().split()]
    assert all(alive(p) for p in pids)
    sidecar.send(local.Stop(1, 0.2))
    assert [p.signal for p in sidecar.wait_ended(1)] == [9], "SIGTERM was ignored, SIGKILL must follow the grace"
    wait_until(lambda: not any(alive(p) for p in pids))
    assert "SIGTERM was not obeyed within 0.2 s" in finish(process, sidecar)


def test_workers_die_with_their_rank(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    body = (
        "import subprocess, sys, os; w = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('worker', w.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    start(sys.executable, "-c", body)
    sidecar.send(launch(1))
    (process,) = sidecar.wait_ended(1)
    worker = int(next(line for line in process.log_tail if line.startswith("worker")).split()[1])
    wait_until(lambda: not alive(worker))


def test_a_later_attempt_replaces_an_earlier_one_and_never_the_other_way(sidecar: FakeSidecar, start: Start) -> None:
    start(sys.executable, "-c", "import time; time.sleep(600)")
    sidecar.send(launch(1))
    (first,) = sidecar.wait_started(1)
    sidecar.send(launch(1))  # again: nothing happens
    sidecar.send(launch(3))
    (third,) = sidecar.wait_started(3)
    assert not alive(first.pid)
    sidecar.send(launch(2))
    sidecar.send(local.Stop(2, 0.1))
    heard = len(sidecar.of(local.Hello))
    sidecar.send(launch(3))
    sidecar.wait(lambda: len(sidecar.of(local.Hello)) > heard)
    assert sidecar.hello.processes == (third,)
    assert alive(third.pid)


def test_an_attempt_that_was_stopped_before_it_came_is_not_started(sidecar: FakeSidecar, start: Start) -> None:
    start(sys.executable, "-c", "print('ran')")
    sidecar.send(local.Stop(2, 0.1))
    sidecar.send(launch(2))
    sidecar.send(launch(3))
    sidecar.wait_ended(3)
    assert all(h.attempt in (0, 3) for h in sidecar.of(local.Hello))  # type: ignore[attr-defined]


def test_sigterm_is_forwarded_and_the_code_tells(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    name = script(
        tmp_path,
        """
        import signal, sys, time
        def bye(*_):
            print("saying goodbye", flush=True)
            sys.exit(3)
        signal.signal(signal.SIGTERM, bye)
        print("up", flush=True)
        time.sleep(600)
        """,
    )
    process = start(sys.executable, name)
    sidecar.send(launch(1))
    assert process.stdout is not None
    while b"up" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"[rank 0] saying goodbye" in rest
    assert b"rank 0 exited with code 3" in rest


def test_the_processes_die_with_the_launcher(sidecar: FakeSidecar, start: Start) -> None:
    process = start(sys.executable, "-c", "import time; time.sleep(600)")
    sidecar.send(launch(1, 2))
    pids = [p.pid for p in sidecar.wait_started(1)]
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(p) for p in pids))


def test_orphans_are_reaped(tmp_path: Path, sidecar: FakeSidecar, start: Start) -> None:
    name = script(
        tmp_path,
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            orphan = os.fork()
            if orphan == 0:
                while os.path.exists("hold"):
                    time.sleep(0.01)
            else:
                print(orphan, file=open("orphan", "w"))
            os._exit(0)
        time.sleep(600)
        """,
    )
    (tmp_path / "hold").touch()
    process = start(sys.executable, name)
    sidecar.send(launch(1))
    (rank,) = sidecar.wait_started(1)
    wait_until(lambda: (tmp_path / "orphan").exists() and bool((tmp_path / "orphan").read_text()))
    orphan = Path("/proc") / (tmp_path / "orphan").read_text().strip()
    wait_until(lambda: f"PPid:\t{process.pid}\n" in (orphan / "status").read_text())
    (tmp_path / "hold").unlink()
    wait_until(lambda: not orphan.exists())
    assert alive(rank.pid)


def test_it_survives_its_sidecar(sidecar: FakeSidecar, start: Start, tmp_path: Path) -> None:
    process = start(sys.executable, "-c", "import time; time.sleep(600)")
    sidecar.send(launch(1))
    (rank,) = sidecar.wait_started(1)
    sidecar.close()
    again = FakeSidecar(tmp_path / "agent.sock")
    try:
        assert again.wait_started(1) == (rank,)
        assert alive(rank.pid)
        again.send(local.Stop(1, 0.1))
        again.wait_ended(1)
        again.send(local.Finish(0))
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        again.close()


@pytest.mark.slow
def test_a_log_that_nobody_reads_does_not_stop_the_trainer(sidecar: FakeSidecar, start: Start) -> None:
    start(sys.executable, "-c", "import sys\nfor i in range(200_000): print('line', i, 'x' * 50)\nprint('the end')")
    sidecar.send(launch(1))  # our end of its stdout is a pipe of 64 KiB, and is not read
    (process,) = sidecar.wait_ended(1)
    assert process.exit_code == 0
    assert process.log_tail[-1] == "the end"
    assert len(process.log_tail) == 40


def test_lines_without_an_end_and_bytes_that_are_no_text(sidecar: FakeSidecar, start: Start) -> None:
    process = start(sys.executable, "-c", "import os; os.write(1, b'\\xff' * 40_000 + b'no newline'); os.write(2, b'err')")
    sidecar.send(launch(1))
    (rank,) = sidecar.wait_ended(1)
    assert {line[-10:] for line in rank.log_tail[-2:]} == {"err", "no newline"}, "two pipes: in any order"
    assert "no newline" in process_log(process, sidecar)


def process_log(process: subprocess.Popen[bytes], sidecar: FakeSidecar) -> str:
    sidecar.send(local.Finish(0))
    output, _ = process.communicate(timeout=20)
    return output.decode(errors="replace")


def test_finish_stops_what_still_runs(sidecar: FakeSidecar, start: Start) -> None:
    process = start(sys.executable, "-c", "import time; time.sleep(600)")
    sidecar.send(launch(1))
    (rank,) = sidecar.wait_started(1)
    finish(process, sidecar, 5)
    assert not alive(rank.pid)


def test_without_a_command_it_says_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, "-m", "holdfast.launcher", "--"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"usage:" in done.stderr


def test_importing_the_package_does_not_load_torch() -> None:
    body = "import sys, holdfast, holdfast.launcher, holdfast._launcher.supervisor; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == 0
