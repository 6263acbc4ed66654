"""`holdfast.resilient`: a process that outlives the failure of another rank, and all the ways in which it may not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holdfast_core import local

from trainer.fake_sidecar import FakeSidecar, alive, launch, python_env, wait_until
from trainer.test_run import Run, log, run, script, weights  # noqa: F401 - `run` is a fixture

pytestmark = pytest.mark.slow

# Each attempt tells its environment, then does what the test put into the file `do`.
CALLED = """
import ctypes, os, signal, sys, time
import holdfast

def train(word, times=[]):
    times.append(word)
    names = "HOLDFAST_ATTEMPT RANK MASTER_PORT TORCHELASTIC_RESTART_COUNT X Y"
    print("call", len(times), "|".join(os.environ.get(n, "-") for n in names.split()), flush=True)
    exec(open(os.environ.get("DO", "do")).read(), globals())
    return word

print("returned", holdfast.resilient(train, "value"), flush=True)
"""
FOREVER = "while True: pass"
Start = Callable[..., "Called"]


class Called:
    """A launcher of the script, started cold: it needs no torch. `log` is all that was printed."""

    def __init__(self, folder: Path, do: str, **env: str) -> None:
        self.folder = folder
        self.do(do)
        script(folder, CALLED)
        self.sidecar = FakeSidecar(folder / "agent.sock")
        self._log = open(folder / "log", "wb")  # noqa: SIM115
        everything = {"HOLDFAST_SOCKET": str(self.sidecar.path), "HOLDFAST_STANDBY": "off", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.launcher", "--", sys.executable, "script.py"],
            env=python_env(**everything), cwd=folder, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def do(self, text: str) -> None:
        (self.folder / "do.new").write_text(text)
        os.rename(self.folder / "do.new", self.folder / "do")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def launch(self, attempt: int, **more: object) -> local.Process:
        """Order an attempt; its first process once it is in the function."""
        calls = self.log().count("] call ")
        self.sidecar.send(launch(attempt, **more))  # type: ignore[arg-type]
        self.sidecar.wait_started(attempt)
        wait_until(lambda: self.log().count("] call ") > calls, 30)
        self.sidecar.wait(lambda: self.sidecar.hello.attempt == attempt)
        return self.sidecar.hello.processes[0]

    def stop(self, attempt: int) -> local.Process:
        """Stop an attempt after a failure; its first process then."""
        self.sidecar.send(local.Stop(attempt, 0.0))
        return self.sidecar.wait_ended(attempt)[0]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        self.sidecar.close()


@pytest.fixture
def called(tmp_path: Path) -> Iterator[Start]:
    """Makes launchers; they are gone after the test."""
    made: list[Called] = []

    def start(do: str, **env: str) -> Called:
        made.append(Called(tmp_path, do, **env))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "do",
    [
        FOREVER,
        "time.sleep(600)",
        "import threading; threading.Event().wait()",
        "import queue; queue.SimpleQueue().get()",
        "os.read(os.pipe()[0], 1)",
        "try:\n while True: pass\nexcept BaseException as error: raise ValueError('wrapped') from error",
        "try:\n while True: pass\nexcept BaseException: sys.exit(3)",
        "try:\n while True: pass\nexcept BaseException: pass",
        "while True:\n try: time.sleep(600)\n except Exception: pass",
    ],
)
def test_a_survivor_is_interrupted_and_called_again_with_the_new_environment(called: Start, do: str) -> None:
    job = called(do, Y="launcher's")
    first = job.launch(1, master_port=29501, env={"X": "1"})
    assert not first.kept
    stopped = job.stop(1)
    assert (stopped.pid, stopped.kept, stopped.ended) == (first.pid, True, True)
    assert alive(first.pid)
    second = job.launch(2, master_port=29502)
    assert (second.pid, second.kept, second.ended) == (first.pid, True, False)
    assert "call 1 1|0|29501|0|1|launcher's" in job.log()
    assert "call 2 2|0|29502|1|-|launcher's" in job.log()
    assert "attempt 2: kept rank 0 in" in job.log()


def test_many_times_in_a_row_also_without_a_stop_between(called: Start) -> None:
    job = called(FOREVER)
    pid = job.launch(1).pid
    for attempt in range(2, 12):
        if attempt % 3:
            job.stop(attempt - 1)
        assert job.launch(attempt).pid == pid
    assert "call 11 11|" in job.log()


@pytest.mark.parametrize(
    "do",
    [
        "m = ctypes.create_string_buffer(64); c = ctypes.CDLL(None); c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)",
        "m = ctypes.create_string_buffer(64); c = ctypes.PyDLL(None); c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)",
        "while True:\n try: time.sleep(600)\n except BaseException: pass",
    ],
    ids=["in C", "in C with the GIL", "in Python that swallows everything"],
)
def test_a_survivor_that_does_not_come_out_is_replaced(called: Start, do: str) -> None:
    job = called(do, HOLDFAST_REBUILD_SECONDS="1")
    first = job.launch(1)
    wait_until(lambda: asleep(first.pid))  # where it cannot be interrupted, not before
    began = time.monotonic()
    stopped = job.stop(1)
    assert time.monotonic() - began < 10
    assert (stopped.signal, stopped.kept) == (signal.SIGKILL, False)
    wait_until(lambda: "is not kept: it did not leave its attempt within 1 s; SIGKILL" in job.log())
    job.do(FOREVER)
    second = job.launch(2)
    assert second.pid != first.pid
    assert not second.kept
    assert "attempt 2: started 1 process(es)" in job.log()


def asleep(pid: int) -> bool:
    """Its main thread waits, and has not run for a while: who waits for the GIL wakes up every 5 ms."""
    looks = []
    for pause in (0.05, 0.0):
        status = Path(f"/proc/{pid}/status").read_text()
        looks.append(re.findall(r"^(?:State|\w*voluntary_ctxt_switches):.*$", status, re.MULTILINE))
        time.sleep(pause)
    return looks[0] == looks[1] and "S (sleeping)" in looks[0][0]


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("raise RuntimeError('mine')", 1, "RuntimeError: mine"),
        ("sys.exit(7)", 7, ""),
        ("pass", 0, "returned value"),
        ("os.kill(os.getpid(), signal.SIGINT)", None, "KeyboardInterrupt"),
    ],
)
def test_what_the_function_does_by_itself_ends_the_process(called: Start, do: str, code: int | None, words: str) -> None:
    job = called(do)
    job.sidecar.send(launch(1))
    (process,) = job.sidecar.wait_ended(1)
    assert (process.exit_code, process.kept) == (code, False)
    assert not alive(process.pid)
    assert words in "\n".join(process.log_tail)


def test_also_in_a_later_call(called: Start) -> None:
    job = called(FOREVER)
    job.launch(1)
    job.stop(1)
    job.do("raise ValueError('in attempt ' + os.environ['HOLDFAST_ATTEMPT'])")
    job.launch(2)
    (process,) = job.sidecar.wait_ended(2)
    assert (process.exit_code, process.kept) == (1, False)
    assert "ValueError: in attempt 2" in process.log_tail


def test_what_comes_after_the_function_is_not_kept(called: Start, tmp_path: Path) -> None:
    job = called("pass")
    script(tmp_path, CALLED + "time.sleep(600)\n")
    job.launch(1)
    wait_until(lambda: "returned value" in job.log())
    stopped = job.stop(1)
    assert (stopped.signal, stopped.kept) == (signal.SIGKILL, False)


@pytest.mark.parametrize("when", ["parked", "asked"])
def test_a_survivor_that_dies_meanwhile_is_replaced(called: Start, when: str) -> None:
    job = called(FOREVER)
    first = job.launch(1)
    if when == "parked":
        job.stop(1)
        os.kill(first.pid, signal.SIGKILL)
    else:
        os.kill(first.pid, signal.SIGSTOP)  # it will not answer any more
        job.sidecar.send(local.Stop(1, 0.0))
        wait_until(lambda: "stopping 0 process(es), keeping rank 0" in job.log())
        os.kill(first.pid, signal.SIGKILL)
    job.sidecar.wait(lambda: job.sidecar.hello.processes[0].signal == signal.SIGKILL)
    second = job.launch(2)
    assert second.pid != first.pid
    assert "attempt 2: started 1 process(es)" in job.log()


def test_one_that_hangs_while_parked_is_replaced(called: Start) -> None:
    job = called(FOREVER, HOLDFAST_REBUILD_SECONDS="0.5")
    first = job.launch(1)
    job.stop(1)
    os.kill(first.pid, signal.SIGSTOP)
    assert job.launch(2).pid != first.pid
    assert "is not kept: it did not come back within 0.5 s; SIGKILL" in job.log()
    assert not alive(first.pid)


@pytest.mark.parametrize(
    ("env", "more", "words"),
    [
        ({}, {"world_size": 2}, "rank, world size or number of processes changed"),
        ({}, {"first_rank": 1, "world_size": 2}, "rank, world size or number of processes changed"),
        ({}, {"env": {"PYTHONHASHSEED": "1"}}, "PYTHONHASHSEED changed, which is read when a process starts"),
        ({"HOLDFAST_REBUILD_SECONDS": "0"}, {}, "stopping 1 process(es)"),
    ],
)
def test_when_nobody_is_kept(called: Start, env: dict[str, str], more: dict[str, object], words: str) -> None:
    job = called(FOREVER, **env)
    first = job.launch(1)
    job.stop(1)
    assert job.launch(2, **more).pid != first.pid
    assert words in job.log()
    assert not alive(first.pid)


def test_a_stop_with_a_grace_is_a_stop(called: Start) -> None:
    job = called(FOREVER)
    first = job.launch(1)
    job.sidecar.send(local.Stop(1, 2.0))
    (stopped,) = job.sidecar.wait_ended(1)
    assert (stopped.signal, stopped.kept) == (signal.SIGTERM, False)
    assert not alive(first.pid)


def test_finish_ends_who_is_parked(called: Start) -> None:
    job = called(FOREVER)
    first = job.launch(1)
    job.stop(1)
    job.sidecar.send(local.Finish(4))
    assert job.process.wait(20) == 4
    assert not alive(first.pid)


def test_without_a_launcher_and_in_a_child_it_is_a_plain_call(called: Start, tmp_path: Path) -> None:
    job = called(
        "import subprocess; print(subprocess.run([sys.executable, 'script.py'], env={**os.environ, 'DO': '/dev/null'},"
        " capture_output=True, text=True).stdout, flush=True)"
    )
    job.sidecar.send(launch(1))
    job.sidecar.wait_ended(1)
    assert job.log().count("returned value") == 2
    alone = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=python_env(DO="/dev/null"), capture_output=True, check=False
    )
    assert b"returned value" in alone.stdout


# --- real ranks, real process groups

DDP = """
import hashlib, os, sys, time
import torch, torch.distributed as dist, holdfast
from torch.nn.parallel import DistributedDataParallel

def train():
    rank = int(os.environ["RANK"])
    print("begins in", os.getpid(), flush=True)
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    net = torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.BatchNorm1d(256), torch.nn.Dropout(), torch.nn.Linear(256, 1))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    old.append(ckpt)
    for step in ckpt.steps(int(sys.argv[1])):
        loss = model(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ckpt.snapshot(step, loss=loss)
        print("at", step, "pid", os.getpid(), flush=True)
        time.sleep(0.01)
        while os.path.exists(f"hold-{step}"): time.sleep(0.001)
        if len(old) > 1 and step == 15:
            print("the old one:", old[0].snapshot(99), flush=True)
    print("weights", hashlib.sha256(b"".join(t.numpy().tobytes() for t in net.state_dict().values())).hexdigest())

old = []
holdfast.resilient(train)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The last weights of a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    name = script(folder, DDP)
    command = [sys.executable, "-m", "holdfast", "run", "-n", "2", name, "30"]
    done = subprocess.run(command, cwd=folder, env=python_env(), capture_output=True, text=True, timeout=100, check=False)
    found = {line for line in (done.stdout + done.stderr).splitlines() if "] weights " in line}
    assert len(found) == 2, done.stderr
    return found


def pid_at(folder: Path, rank: int, step: int) -> int:
    """Of the rank's newest process that has reached the step; 0: none has."""
    found = re.findall(rf"^\[rank {rank}\] at {step} pid (\d+)$", log(folder), re.MULTILINE)
    return int(found[-1]) if found else 0


def wait_at(folder: Path, step: int) -> list[int]:
    wait_until(lambda: all(pid_at(folder, r, step) for r in range(2)), 60)
    return [pid_at(folder, r, step) for r in range(2)]


@pytest.mark.torch
@pytest.mark.parametrize(("victim", "capture"), [(0, "lazy:1"), (1, "sync")])
def test_the_other_rank_stays_and_the_weights_are_the_same(
    tmp_path: Path, run: Run, undisturbed: set[str], victim: int, capture: str  # noqa: F811
) -> None:  # fmt: skip
    name = script(tmp_path, DDP)
    (tmp_path / "hold-10").touch()
    process = run("-n", "2", name, "30", HOLDFAST_CAPTURE=capture)
    before = wait_at(tmp_path, 10)
    os.kill(before[victim], signal.SIGKILL)
    (tmp_path / "hold-10").unlink()
    assert process.wait(60) == 0, log(tmp_path)
    after = [pid_at(tmp_path, r, 29) for r in range(2)]
    assert after[1 - victim] == before[1 - victim], log(tmp_path)
    assert after[victim] != before[victim]
    assert f"attempt 2: kept rank {1 - victim}, started 1 process(es)" in log(tmp_path)
    assert weights(tmp_path) == undisturbed
    assert "the old one: False" in log(tmp_path), "a Checkpointer of the old attempt must not write"
    assert "no snapshot of step 99: fenced: attempt 2 writes now" in log(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("victim", [0, 1])
def test_twice_and_in_the_middle_of_a_rebuild(
    tmp_path: Path, run: Run, undisturbed: set[str], victim: int  # noqa: F811
) -> None:  # fmt: skip
    name, kept = script(tmp_path, DDP), 1 - victim
    for hold in ("hold-10", "hold-20"):
        (tmp_path / hold).touch()
    process = run("-n", "2", name, "30")
    before = wait_at(tmp_path, 10)
    os.kill(before[victim], signal.SIGKILL)
    (tmp_path / "hold-10").unlink()
    wait_until(lambda: len(begins(tmp_path, victim)) == 2, 60)
    os.kill(begins(tmp_path, victim)[1], signal.SIGKILL)  # the survivor is still waiting for its process group
    at_20 = wait_at(tmp_path, 20)
    gave_up = f"[rank {kept}] holdfast: this process waits in init_process_group" in log(tmp_path)
    assert (at_20[kept] == before[kept]) != gave_up, log(tmp_path)
    os.kill(at_20[victim], signal.SIGKILL)
    (tmp_path / "hold-20").unlink()
    assert process.wait(60) == 0, log(tmp_path)
    assert pid_at(tmp_path, kept, 29) == at_20[kept], log(tmp_path)
    assert "did not leave its attempt" not in log(tmp_path)
    assert weights(tmp_path) == undisturbed


def begins(folder: Path, rank: int) -> list[int]:
    """Pids of a rank, one for each call of the function."""
    return [int(p) for p in re.findall(rf"^\[rank {rank}\] begins in (\d+)$", log(folder), re.MULTILINE)]
