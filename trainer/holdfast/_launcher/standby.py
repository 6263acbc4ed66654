"""A preloaded interpreter: imports torch and waits; asked to, it forks a process that becomes a rank.

Run by the launcher as `python -m holdfast._launcher.standby FD`, with the interpreter that the user's command names. A rank
is forked twice, so that it is the launcher's child (which then sees its exit itself), and starts only when the launcher, which
by then knows its pid, says go. It never touches CUDA, and refuses to fork while any library has a thread running: the thread
would be missing in the child, with its locks held.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from .._state import ahead
from . import line, linux

_PRELOAD = ("torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "holdfast.checkpointer")
_MAX_MESSAGE = 1 << 20
_STARTED_FDS = 4  # stdout, stderr, line to the launcher, go


@dataclass(frozen=True)
class Job:
    """What a forked child is to run; `warm.Standby` sends it as JSON."""

    target: str
    is_module: bool
    arguments: list[str]
    env: dict[str, str]
    cwd: str
    launcher: int
    unbuffered: bool


def main() -> None:
    """Preload, then serve. Returns only in a forked child, after the user's script."""
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the working folder, put there by -m: the script's own folder takes its place later
    control = socket.socket(fileno=int(sys.argv[1]))
    seconds = _preload()
    control.send(json.dumps({"ready": seconds}).encode())
    job = _serve(control)
    control.close()
    _run(job)


def _preload() -> float:
    start = time.monotonic()
    for name in _PRELOAD:
        importlib.import_module(name)
    for name in filter(None, os.environ.get("HOLDFAST_PRELOAD", "").split(",")):
        try:
            importlib.import_module(name.strip())
        except Exception as error:  # noqa: BLE001 - the script will meet it too, and its error is the one to show
            sys.stderr.write(f"holdfast: HOLDFAST_PRELOAD: {name}: {error}\n")
    gc.collect()
    gc.freeze()  # shared pages stay shared
    return time.monotonic() - start


def _serve(control: socket.socket) -> Job:
    """Fork a rank for each request. Returns in the child."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE, _STARTED_FDS)
        if not data:
            os._exit(0)  # the launcher is gone
        job = Job(**json.loads(data))
        problem = _unfit()
        if problem:
            answer: dict[str, Any] = {"error": problem}
        else:
            pid = _fork(job, fds)
            if pid == 0:
                return job
            answer = {"pid": pid}
        for fd in fds:
            os.close(fd)
        control.send(json.dumps(answer).encode())


def _unfit() -> str:
    """Why this process must not be forked any more."""
    threads = linux.thread_names()
    if len(threads) > 1:
        return f"threads are running: {', '.join(threads)}"
    return "a preloaded module has opened a GPU" if linux.holds_gpu() else ""


def _fork(job: Job, fds: list[int]) -> int:
    """0 in the new rank, its pid in the standby."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    middle = os.fork()
    if middle == 0:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()  # before the launcher learns the pid: it may kill the group at once
        os.write(write_end, str(os.getpid()).encode())
        os.close(read_end)
        os.close(write_end)
        _become_rank(job, fds)
        return 0
    os.close(write_end)
    os.waitpid(middle, 0)
    pid = int(os.read(read_end, 32) or b"-1")
    os.close(read_end)
    return pid


def _become_rank(job: Job, fds: list[int]) -> None:
    linux.wait_for_parent(job.launcher)
    linux.die_with(job.launcher)
    stdout, stderr, control, go = fds
    if not os.read(go, 1):
        os._exit(128 + signal.SIGKILL)  # the launcher gave this start up
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdout, stderr, go):
        os.close(fd)
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.env)
    os.environ[line.ENV] = str(control)


def _run(job: Job) -> None:
    """Be what `python script.py` would have been."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(write_through=job.unbuffered or bool(job.env.get("PYTHONUNBUFFERED")))  # type: ignore[union-attr]
    _own_threads_and_seeds(job.env)
    sys.argv = [job.target, *job.arguments]
    ahead.begin(job.env)
    sys.orig_argv = [sys.executable, *(["-m"] if job.is_module else []), *sys.argv]
    try:
        _run_target(job)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the interpreter's own last resort, without our frames
        _fail(error)


def _own_threads_and_seeds(env: dict[str, str]) -> None:
    """What libraries read or drew when they were imported, before this rank's environment was known."""
    torch = importlib.import_module("torch")
    threads = env.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        torch.set_num_threads(int(threads))
    torch.default_generator.seed()
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random").seed()


def _run_target(job: Job) -> None:
    if job.is_module:
        _script_folder(os.getcwd())
        runpy.run_module(job.target, run_name="__main__", alter_sys=True)
        return
    if not os.path.exists(job.target):
        sys.stderr.write(f"{sys.executable}: can't open file {os.path.abspath(job.target)!r}: No such file or directory\n")
        raise SystemExit(2)
    _script_folder(os.path.dirname(os.path.realpath(job.target)))
    runpy.run_path(job.target, run_name="__main__")


def _script_folder(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, folder)


def _fail(error: BaseException) -> NoReturn:
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    error = error.with_traceback(frames)
    if isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.excepthook(type(error), error, frames)
    raise SystemExit(1)


def _is_ours(file: str) -> bool:
    return file in (__file__, runpy.__file__, "<frozen runpy>")


if __name__ == "__main__":
    main()
