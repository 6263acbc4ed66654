"""The figure of a killed process: SIGKILL of one of two ranks, until both finished their next step."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..context import Context
from ..environments import ROOT, Unavailable
from ..jobs import stamps
from ..model import Figure, Outcome, Row
from ..processes import MARK, end_all, marked, new_mark, remove
from ..progress import say
from ..stats import median
from ..systems import DLROVER

OURS = "Holdfast"
_KILLS = 3  # of each start
_START_SECONDS = 180.0
_RECOVERY_SECONDS = 120.0
_QUIET_SECONDS = 5.0  # of training between faults: a standby interpreter has had time to get ready
_JOBS = ROOT / "bench" / "holdfast_bench" / "jobs"
_ARGUMENTS = ("--steps", "1000000", "--batch", "2")
_TARGET = "<= 0.5 s, and >= 4 x faster than torchrun and than dlrover-run"


@dataclass
class System:
    """A launcher, its command and environment; the seconds of each recovery."""

    title: str
    command: list[str]
    environ: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""


def _systems(peers: bool) -> list[System]:
    run = [str(ROOT / ".venv/bin/holdfast"), "run", "-n", "2", "--max-restarts", "1000", str(_JOBS / "gpt_holdfast.py")]
    ours = [System(OURS, run), System("Holdfast, under holdfast.resilient", [*run, "--resilient"])]
    job = str(_JOBS / "gpt_peer.py")
    torchrun = [
        str(ROOT / ".venv/bin/python"),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=100",
    ]
    # Without this, torch 2.13 leaves the store of the first attempt to the second, which then waits for ever.
    shared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    dlrover = [str(DLROVER.folder / "bin/dlrover-run"), "--standalone", "--nproc-per-node=2", "--max-restarts=100"]
    found = [
        System("torchrun --max-restarts, torch.save", [*torchrun, job, "--saver", "torch"], shared),
        System(
            "dlrover-run, memory saves",
            [*dlrover, job, "--saver", "dlrover"],
            {"PATH": f"{DLROVER.folder / 'bin'}:/usr/bin:/bin"},
        ),
    ]
    return [*ours, *(found if peers else [])]


def crash_to_step(context: Context) -> Outcome:
    """The launchers take turns; each start is killed some times, now rank 0, now rank 1."""
    systems = _systems(context.peers)
    for turn in range(-(-context.samples // _KILLS)):
        for system in systems:
            if not system.problem:
                _turn(system, turn)
    ours, resilient, *peers = systems
    if ours.problem or not ours.seconds:
        raise RuntimeError(f"Holdfast: {ours.problem}")
    value = median(ours.seconds)
    times = {p.title: median(p.seconds) for p in peers if p.seconds}
    beaten = len(times) == len(peers) and len(peers) > 0 and all(t >= 4.0 * value for t in times.values())
    figure = Figure(value, "s", _TARGET, value <= 0.5 and beaten, min(times.values(), default=None), None, ours.seconds)
    rows = [_own_row(ours), _own_row(resilient), *(_row(p, value) for p in peers)]
    return Outcome(figure, rows, {s.title: s.seconds for s in systems})


def _own_row(system: System) -> Row:
    return Row("2 ranks", system.title, "s", median(system.seconds) if system.seconds else None, note=system.problem)


def _row(peer: System, value: float) -> Row:
    if not peer.seconds:
        return Row("2 ranks", peer.title, "s", note=peer.problem)
    words = f"after {len(peer.seconds)} recoveries: {peer.problem}" if peer.problem else ""
    return Row("2 ranks", peer.title, "s", value, median(peer.seconds), None, value / median(peer.seconds), words)


def _turn(system: System, turn: int) -> None:
    try:
        if "dlrover" in system.title:
            DLROVER.ensure()
        with _running(system) as job:
            for kill in range(_KILLS):
                system.seconds.append(_kill_one(job, rank=(turn + kill) % 2))
                say(f"  {system.title}: {system.seconds[-1]:.2f} s")
    except Unavailable as error:
        system.problem = str(error)
        say(f"  {system.title}: {error}")


@dataclass(frozen=True)
class Job:
    """A running job of two ranks."""

    folder: Path
    mark: str
    process: subprocess.Popen[bytes]

    def last_words(self) -> str:
        """Of its output."""
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.poll()}"


@contextmanager
def _running(system: System) -> Iterator[Job]:
    mark = new_mark()
    folder = Path(tempfile.mkdtemp(prefix=f"{mark}-", dir="/dev/shm"))
    path = os.pathsep.join(str(ROOT / part) for part in ("bench", "core", "trainer", "examples/gpt"))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    ours = {"PYTHONPATH": path, MARK: mark, "HOLDFAST_BENCH_STAMPS": str(folder), "ELASTIC_JOB_NAME": mark}
    environ = {**clean, **ours, "OMP_NUM_THREADS": "1", **system.environ}
    with open(folder / "log", "wb") as log:
        command = [*system.command, *_ARGUMENTS]
        process = subprocess.Popen(
            command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield Job(folder, mark, process)
    finally:
        _end(process, mark)
        kept = ROOT / "build" / "bench-logs"
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "log", kept / f"crash-{re.sub('[^a-z]+', '-', system.title.lower())}.log")
        remove(mark)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """The launcher is asked first, so that it cleans up; what is left of the job is ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
    end_all(mark)
    process.wait(5.0)


def _kill_one(job: Job, rank: int) -> float:
    """Once both ranks have trained for a while, kill this one; seconds until both finished their next step."""
    _trained(job)
    pid = stamps.read(job.folder, rank)[-1].pid
    if pid not in marked(job.mark):
        raise Unavailable(f"rank {rank} is not the process {pid} that it noted")
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while time.monotonic() < at + _RECOVERY_SECONDS:
        time.sleep(0.05)
        both = [stamps.read(job.folder, r) for r in (rank, 1 - rank)]
        seconds = stamps.recovered(both[0], both[1], pid, at)
        if seconds is not None:
            return seconds
        if job.process.poll() is not None:
            break
    raise Unavailable(f"no step in {_RECOVERY_SECONDS:.0f} s after rank {rank} was killed: {job.last_words()}")


def _trained(job: Job) -> None:
    """Both ranks have run without a break for some seconds."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        newest = [stamps.read(job.folder, rank) for rank in (0, 1)]
        if all(s and s[-1].seconds - next(x for x in s if x.pid == s[-1].pid).seconds > _QUIET_SECONDS for s in newest):
            return
        if job.process.poll() is not None:
            break
        time.sleep(0.1)
    raise Unavailable(f"does not train: {job.last_words()}")
