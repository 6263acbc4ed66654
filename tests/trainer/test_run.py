"""`holdfast run` as a user runs it: real sidecar, launcher, planner and ranks."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holdfast_core import arena

from trainer.fake_sidecar import alive, python_env, wait_until

pytestmark = pytest.mark.slow

TRAIN = """
import hashlib, os, sys, time
import torch, holdfast
rank = int(os.environ.get("ALONE", os.environ.get("RANK")))
torch.manual_seed(rank)
model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(), torch.nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
for step in ckpt.steps(int(sys.argv[1])):
    loss = model(torch.randn(4, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ckpt.snapshot(step, loss=loss)
    print("at", step, "pid", os.getpid(), flush=True)
    time.sleep(float(sys.argv[2]))
    while os.path.exists("hold") and step >= 10: time.sleep(0.01)
print("weights", hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start `holdfast run` with its output in a file `log`; nothing of it is left after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", "run", *arguments],
                cwd=tmp_path, env=python_env(**env), stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        wait_until(lambda: not descendants(process.pid))  # noqa: B023 - called at once


def descendants(pid: int) -> list[int]:
    """Pids below a process, deepest last."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = [], [pid]
    while new:
        new = [p for p, parent in parents.items() if parent in new]
        found += new
    return found


def script(folder: Path, text: str, name: str = "script.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return name


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def weights(folder: Path) -> set[str]:
    return {line for line in log(folder).splitlines() if "] weights " in line}


def shared_memory() -> set[str]:
    return {p.name for p in Path("/dev/shm").glob("holdfast-run-*")}


def committed(pid: int) -> int:
    """The newest step that a run's sidecar knows to be sealed, as it tells the trainer."""
    arenas = Path("/dev/shm").glob(f"holdfast-run-{pid}-*/**/rank-00000.*.arena")
    return max((arena.committed(memoryview(path.read_bytes())) for path in arenas), default=-1)


def weights_without_faults(folder: Path, script: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The same script in this process, rank by rank, with no Holdfast process around."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [script, str(steps), "0"])
    lines = set()
    for rank in range(2):
        monkeypatch.setenv("ALONE", str(rank))
        monkeypatch.setenv("HOLDFAST_DIR", str(folder / f"alone-{rank}"))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            runpy.run_path(script, run_name="__main__")
        lines |= {f"[rank {rank}] {line}" for line in output.getvalue().splitlines() if line.startswith("weights")}
    torch.set_num_threads(threads)
    monkeypatch.delenv("ALONE")
    return lines


@pytest.mark.torch
def test_a_killed_rank_resumes_from_memory_and_the_weights_are_the_same(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = script(tmp_path, TRAIN)
    expected = weights_without_faults(tmp_path, name, 30, monkeypatch)
    assert len(expected) == 2
    (tmp_path / "hold").touch()
    process = run("-n", "2", name, "30", "0")
    wait_until(lambda: all(f"[rank {r}] at 10" in log(tmp_path) for r in range(2)), 60)
    victim = next(int(line.split()[5]) for line in log(tmp_path).splitlines() if line.startswith("[rank 1] at 10"))
    os.kill(victim, signal.SIGKILL)
    (tmp_path / "hold").unlink()
    assert process.wait(60) == 0, log(tmp_path)
    assert "resumed from memory at step" in log(tmp_path)
    assert "killed by signal 9" in log(tmp_path)
    assert weights(tmp_path) == expected


AHEAD = """
import os, signal, sys, threading
import torch, holdfast
from holdfast._state import ahead
for thread in threading.enumerate():
    if thread.name == "holdfast-ahead":
        thread.join(30)
early = list(ahead._mapped.values())
ckpt = holdfast.Checkpointer(model=torch.nn.Linear(64, 64))
taken, take = [], ahead.take
ahead.take = lambda fd: taken.append(take(fd)) or taken[-1]
print("restored", ckpt.restore(), "from what was mapped ahead:", any(t is e for t in taken for e in early), flush=True)
for step in ckpt.steps(6):
    ckpt.snapshot(step)
    assert ckpt.wait()
    if step == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.torch
@pytest.mark.parametrize("standby", ["on", "off"])
def test_a_restarted_rank_restores_from_what_was_mapped_while_it_started(tmp_path: Path, run: Run, standby: str) -> None:
    process = run("-n", "1", script(tmp_path, AHEAD), HOLDFAST_STANDBY=standby)
    assert process.wait(60) == 0, log(tmp_path)
    assert "restored -1 from what was mapped ahead: False" in log(tmp_path)
    assert re.search(r"restored [123] from what was mapped ahead: True", log(tmp_path)), log(tmp_path)


EVERY = """
import os, pathlib
import torch, holdfast
from holdfast_core import arena
weight = torch.zeros(4)
ckpt = holdfast.Checkpointer(weight=weight)
for step in ckpt.steps(40):
    ckpt.snapshot(step)
    if step == 39:
        files = (pathlib.Path(os.environ["HOLDFAST_SOCKET"]).parents[1] / "arena").iterdir()
        print("every", {arena.every(memoryview(f.read_bytes())) for f in files})
"""


@pytest.mark.torch
def test_the_interval_of_the_command_line_reaches_the_script(tmp_path: Path, run: Run) -> None:
    assert run("--every", "4", script(tmp_path, EVERY)).wait(60) == 0, log(tmp_path)
    assert "every {4}" in log(tmp_path)


def test_an_interval_that_is_none_is_refused(tmp_path: Path, run: Run) -> None:
    assert run("--every", "often", script(tmp_path, EVERY)).wait(60) == 2
    assert "'often' is not a number of steps (8), of seconds (30s), or auto" in log(tmp_path)


@pytest.mark.torch
def test_interrupted_it_leaves_nothing_but_the_store_and_goes_on_from_there(tmp_path: Path, run: Run) -> None:
    name = script(tmp_path, TRAIN)
    store = str(tmp_path / "store")
    (tmp_path / "hold").touch()
    process = run("-n", "1", "--store", store, "--every-seconds", "3600", name, "12", "0")
    wait_until(lambda: "at 10" in log(tmp_path) and committed(process.pid) >= 0, 60)
    safe = committed(process.pid)  # not always 10: steps of a millisecond may find every slot taken, and have no snapshot
    below = descendants(process.pid)
    assert len(below) >= 3
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 128 + signal.SIGINT, log(tmp_path)
    wait_until(lambda: not any(alive(p) for p in below))
    assert not {n for n in shared_memory() if f"-{process.pid}-" in n}
    (tmp_path / "hold").unlink()
    assert run("-n", "1", "--store", store, name, "12", "0").wait(60) == 0, log(tmp_path)
    steps = [int(n) for n in re.findall(r"\[rank 0\] at (\d+)", log(tmp_path))]
    assert steps == list(range(steps[0], 12)), log(tmp_path)
    assert steps[0] > safe, f"step {safe} was committed: {log(tmp_path)}"


FAILS = """
import os, sys, time
attempt, rank = os.environ["HOLDFAST_ATTEMPT"], os.environ["RANK"]
print("I am", sys.argv[1], flush=True)
open(f"{attempt}.{rank}", "w").close()
deadline = time.monotonic() + 10
while not all(os.path.exists(f"{attempt}.{r}") for r in range(2)):  # the first to leave has the other one stopped
    assert time.monotonic() < deadline
    time.sleep(0.01)
sys.exit(3)
"""


def test_a_script_that_fails_every_time(tmp_path: Path, run: Run) -> None:
    name = script(tmp_path, FAILS)
    assert run("-n", "2", name, "here", HOLDFAST_STANDBY="off").wait(40) == 3
    assert log(tmp_path).count("[rank 0] I am here") == 3
    assert "NoProgress" in log(tmp_path)


def test_a_script_that_does_nothing(tmp_path: Path, run: Run) -> None:
    assert run(script(tmp_path, "pass"), HOLDFAST_STANDBY="off").wait(40) == 0
    assert "without reporting a step" in log(tmp_path)


def test_a_module(tmp_path: Path, run: Run) -> None:
    script(tmp_path, "import sys; print(__name__, sys.argv[1:])", "module.py")
    assert run("-m", "module", "--option", "1", HOLDFAST_STANDBY="off").wait(40) == 0
    assert "__main__ ['--option', '1']" in log(tmp_path)


def test_a_script_that_is_not_there(tmp_path: Path, run: Run) -> None:
    assert run("nothing.py").wait(20) == 127
    assert "nothing.py is not a file" in log(tmp_path)


def test_a_sidecar_and_a_launcher_that_die_are_replaced(tmp_path: Path, run: Run) -> None:
    name = script(tmp_path, "import os, time\nprint('up', flush=True)\nwhile os.path.exists('hold'): time.sleep(0.01)")
    (tmp_path / "hold").touch()
    process = run(name, HOLDFAST_STANDBY="off")
    wait_until(lambda: "[rank 0] up" in log(tmp_path))
    for what, sign in (("holdfast_sidecar", "the sidecar ended (-9)"), ("holdfast.launcher", "the launcher ended (-9)")):
        (victim,) = (p for p in descendants(process.pid) if what in Path(f"/proc/{p}/cmdline").read_text())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: sign in log(tmp_path))  # noqa: B023 - called at once
    wait_until(lambda: log(tmp_path).count("[rank 0] up") == 2)
    (tmp_path / "hold").unlink()
    assert process.wait(40) == 0, log(tmp_path)


def test_killed_outright_it_takes_everything_with_it(tmp_path: Path, run: Run) -> None:
    process = run(script(tmp_path, "import time; print('up', flush=True); time.sleep(600)"), HOLDFAST_STANDBY="off")
    wait_until(lambda: "[rank 0] up" in log(tmp_path))
    below = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(p) for p in below))
    assert shared_memory(), "the folder is left: nobody was there to remove it"
    assert run(script(tmp_path, "pass"), HOLDFAST_STANDBY="off").wait(40) == 0
    assert not {n for n in shared_memory() if f"-{process.pid}-" in n}, "the next run removes it"


def test_no_sidecar_package(tmp_path: Path) -> None:
    body = "import sys; sys.modules['holdfast_sidecar'] = None\nfrom holdfast.cli import main; sys.exit(main(['run', 'x.py']))"
    (tmp_path / "x.py").touch()
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install" in done.stderr
    assert time.monotonic() - start < 40
