"""The warm standby: a forked rank is what a cold one would be, and everything that is not plain falls back to cold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast._launcher import command
from holdfast_core import local

from trainer.fake_sidecar import FakeSidecar, alive, launch, python_env, wait_until

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SCRIPT = """
import json, os, signal, sys
import random
what = sys.argv[1]
if what == "tell":
    main = sys.modules["__main__"]
    import numpy, torch
    print(json.dumps({
        "argv": sys.argv, "path0": sys.path[0], "name": __name__, "file": os.path.basename(main.__file__),
        "own": main.__dict__ is globals(), "rank": os.environ["RANK"], "stdin": os.read(0, 1).decode(),
        "pgid": os.getpgid(0) == os.getpid(), "sid": os.getsid(0) == os.getpid(),
        "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
        "term": str(signal.getsignal(signal.SIGTERM)), "pipe": str(signal.getsignal(signal.SIGPIPE)),
        "threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized(),
    }))
    for draw in (random.random(), numpy.random.random(), torch.rand(1).item()):
        print("drew", draw)
elif what == "exit":
    sys.exit(int(sys.argv[2]))
elif what == "raise":
    def inner(): raise ValueError("told you")
    inner()
elif what == "kill":
    os.kill(os.getpid(), int(sys.argv[2]))
elif what == "sleep":
    import subprocess, time
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("worker", worker.pid, flush=True)
    time.sleep(600)
elif what == "atexit":
    import atexit, threading, time
    atexit.register(lambda: print("atexit ran"))
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread ended"))).start()
    print("main ended", end="")
"""


class Warm:
    """A launcher with its standby ready, and one script; `control` is changed between attempts by the tests."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.attempt = 0
        (folder / "real").mkdir()
        (folder / "real" / "script.py").write_text(textwrap.dedent(SCRIPT))
        # the command is fixed when a launcher starts: this one reads its arguments from a file
        (folder / "real" / "main.py").write_text(
            "import runpy, sys, json\nsys.argv[1:] = json.load(open('args.json'))\nexec(open('real/script.py').read())\n"
        )
        self.sidecar = FakeSidecar(folder / "agent.sock")
        self._log = open(folder / "log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.launcher", "--", Path(sys.executable).name, "real/main.py", "fixed"],
            env=python_env(
                HOLDFAST_SOCKET=str(self.sidecar.path), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env
            ),
            cwd=folder, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.sidecar.wait(lambda: "warm standby is ready" in self.log() or "no warm standby" in self.log(), 60)

    def close(self) -> None:
        self.sidecar.send(local.Finish(0))
        code = self.process.wait(20)
        self._log.close()
        self.sidecar.close()
        assert code == 0, self.log()

    @property
    def standby(self) -> str:
        return self.sidecar.hello.standby

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *arguments: str, processes: int = 1, **env: str) -> tuple[local.Process, ...]:
        (self.folder / "args.json").write_text(json.dumps(arguments))
        self.attempt += 1
        self.sidecar.send(launch(self.attempt, processes, env=env))
        return self.sidecar.wait_started(self.attempt)

    def run(self, *arguments: str, processes: int = 1, **env: str) -> tuple[local.Process, ...]:
        self.start(*arguments, processes=processes, **env)
        ended = self.sidecar.wait_ended(self.attempt)
        wait_until(lambda: f"attempt {self.attempt}: started" in self.log())
        return ended

    def way(self) -> str:
        return next(line for line in self.log().splitlines() if f"attempt {self.attempt}: started" in line)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    launcher = Warm(tmp_path_factory.mktemp("warm"))
    yield launcher
    launcher.close()


def test_a_forked_rank_is_what_a_cold_one_is(warm: Warm) -> None:
    told, drawn = [], []
    for env in ({}, {"PYTHONHASHSEED": "0"}):  # the second one can only be started cold
        ended = warm.run("tell", processes=2, **env)
        assert [p.exit_code for p in ended] == [0, 0], ended
        told.append([json.loads(p.log_tail[0]) for p in ended])
        drawn += [line for p in ended for line in p.log_tail if line.startswith("drew")]
    assert "from the warm standby" in warm.log()
    assert "cold (PYTHONHASHSEED differs" in warm.way()
    assert told[0] == told[1]
    assert told[0][1]["rank"] == "1"
    assert told[0][0]["threads"] == 1
    assert told[0][0]["path0"] == str(warm.folder / "real")
    assert len(set(drawn)) == 2 * 2 * 3, "each rank draws its own unseeded numbers"


@pytest.mark.parametrize(
    ("arguments", "code", "number"),
    [
        (["exit", "0"], 0, None),
        (["exit", "41"], 41, None),
        (["raise"], 1, None),
        (["kill", "9"], None, 9),
        (["kill", "11"], None, 11),
        (["kill", "2"], None, 2),
    ],
)
def test_exits_of_forked_ranks_are_told_precisely(
    warm: Warm, arguments: list[str], code: int | None, number: int | None
) -> None:
    (process,) = warm.run(*arguments)
    assert "from the warm standby" in warm.way()
    assert (process.exit_code, process.signal) == (code, number)
    if arguments == ["raise"]:
        assert process.log_tail[-1] == "ValueError: told you"
        assert "standby" not in "".join(process.log_tail)


def test_the_sidecar_is_told_that_it_is_ready(warm: Warm) -> None:
    warm.sidecar.wait(lambda: warm.standby == "ready")


def test_threads_and_exit_handlers_run_to_their_end(warm: Warm) -> None:
    (process,) = warm.run("atexit")
    assert "".join(process.log_tail) == "main endedthread endedatexit ran"


def test_groups_of_forked_ranks_end_together(warm: Warm) -> None:
    ranks = warm.start("sleep", processes=2)
    wait_until(lambda: warm.log().count("] worker ") >= 2)
    workers = [int(line.split()[-1]) for line in warm.log().splitlines() if "] worker " in line]
    warm.sidecar.send(local.Stop(warm.attempt, 1.0))
    ended = warm.sidecar.wait_ended(warm.attempt)
    assert [p.signal for p in ended] == [signal.SIGTERM] * 2
    wait_until(lambda: not any(alive(p) for p in [*workers, *(r.pid for r in ranks)]))


def test_a_dead_standby_costs_warmth_not_the_start(warm: Warm) -> None:
    standby = next(
        int(p.name) for p in Path("/proc").iterdir()
        if p.name.isdigit() and f"PPid:\t{warm.process.pid}\n" in _read(p / "status") and "standby" in _read(p / "cmdline")
    )  # fmt: skip
    ready = warm.log().count("warm standby is ready")
    os.kill(standby, 9)
    assert [p.exit_code for p in warm.run("exit", "0")] == [0]
    wait_until(lambda: warm.log().count("warm standby is ready") == ready + 1, 60)
    assert [p.exit_code for p in warm.run("exit", "0")] == [0]
    assert "from the warm standby" in warm.way()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


OPENS_A_GPU = """
from holdfast._launcher import linux
linux._GPU_DEVICES = (__file__,)  # stands for /dev/nvidia0: this machine may have none
device = open(__file__)
"""


@pytest.mark.parametrize(
    ("module", "way", "words"),
    [
        ("import os; imported_in = os.getpid()", "from the warm standby", "HOLDFAST_PRELOAD: no_such_module: No module named"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
            "cold (the standby refused: threads are running: ",
            "",
        ),
        (OPENS_A_GPU, "cold (the standby refused: a preloaded module has opened a GPU)", ""),
        (
            "import os; os._exit(3)",
            "cold (the standby could not import what it preloads",
            "no warm standby: the standby could not",
        ),
    ],
    ids=["imported in advance", "starts a thread", "opens a GPU", "ends the standby"],
)
def test_modules_that_the_job_names(tmp_path: Path, module: str, way: str, words: str) -> None:
    (tmp_path / "named.py").write_text(module)
    launcher = Warm(tmp_path, HOLDFAST_PRELOAD="no_such_module, named", PYTHONPATH=str(tmp_path))
    try:
        body = "import os, sys; print('named in', getattr(sys.modules.get('named'), 'imported_in', 0), 'not', os.getpid())"
        (tmp_path / "real" / "main.py").write_text(body)
        (process,) = launcher.run()
        assert process.exit_code == 0
        assert way in launcher.way()
        assert words in launcher.log()
        found = next(line.split() for line in process.log_tail if line.startswith("named in"))
        assert (found[2] not in ("0", found[4])) == ("warm" in way and "imported_in" in module), "imported before the fork"
    finally:
        launcher.close()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["python", "-u", "train.py", "--x"], ("train.py", False, ("--x",), True)),
        (["python3", "-m", "pkg.train", "-u"], ("pkg.train", True, ("-u",), False)),
        (["python", "-O", "train.py"], "the option -O needs"),
        (["python", "-c", "pass"], "the option -c needs"),
        (["python"], "no script"),
        (["bash", "train.sh"], "not a Python interpreter"),
        (["/nowhere/python3.11", "train.py"], "is not found"),
    ],
)
def test_which_commands_can_be_warm(line: list[str], expected: object) -> None:
    parsed = command.parse(line, path=str(Path(sys.executable).parent) + ":/usr/bin:/usr/local/bin")
    if isinstance(parsed, str):
        assert isinstance(expected, str)
        assert expected in parsed
    else:
        assert (parsed.target, parsed.is_module, parsed.arguments, parsed.unbuffered) == expected
