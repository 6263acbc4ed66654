"""Running other programs: bounded, captured, and killed as a group when the command is interrupted.

Long-lived parts of the cluster are started by `daemon` instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from holdfast_cluster.config import ClusterError

_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_aborted = threading.Event()


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 60.0,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Runs a program to its end and returns its output (empty with `log`, which then holds it).

    Raises ClusterError with the last lines of the output when it fails or takes longer than `timeout` seconds.
    """
    words = [str(word) for word in argv]
    with _output(log) as out:
        process = _start(words, out, env, cwd, stdin)
        try:
            text, _ = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise ClusterError(f"`{_short(words)}` took longer than {timeout:.0f} s{_tail_of(log, '')}") from None
        except BaseException:
            _end(process)
            raise
        finally:
            with _lock:
                _running.discard(process)
    if process.returncode < 0:
        check_not_aborted()
    if process.returncode != 0:
        raise ClusterError(f"`{_short(words)}` exited {process.returncode}{_tail_of(log, text or '')}")
    return text or ""


def _start(
    words: list[str],
    out: IO[str] | int,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdin: str | None,
) -> subprocess.Popen[str]:
    check_not_aborted()
    try:
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ClusterError(f"{words[0]} is not installed: run `cluster prepare` as root") from None
    with _lock:
        _running.add(process)
        aborted = _aborted.is_set()
    if aborted:  # `abort_all` may have made its list just before
        _kill(process)
    return process


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[IO[str] | int]:
    if log is None:
        yield subprocess.PIPE
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        yield stream


def succeeds(argv: Sequence[str | Path], *, timeout: float = 30.0) -> bool:
    """Whether a program that only tests or removes something exits 0."""
    try:
        run(argv, timeout=timeout)
    except ClusterError:
        return False
    return True


def abort_all() -> None:
    """Kills every program that `run` has started and lets none start any more: used on Ctrl-C.

    Each is read to its end by the thread that runs it: two readers of one pipe close it under each other's feet.
    """
    with _lock:
        _aborted.set()
        for process in _running:
            _kill(process)


def check_not_aborted() -> None:
    """Raises ClusterError after `abort_all`, so that work in other threads ends soon."""
    if _aborted.is_set():
        raise ClusterError("interrupted")


def resume() -> None:
    """Lets programs start again after `abort_all`: the clean-up after Ctrl-C needs them."""
    _aborted.clear()


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, every: float = 0.1) -> None:
    """Polls until `condition()` holds; raises ClusterError that names `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        check_not_aborted()
        if time.monotonic() >= deadline:
            raise ClusterError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets a clean-up finish: it is bounded, and half a clean-up helps nobody."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file, or a word that says there are none."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return f"(no log at {path})"


def _tail_of(log: Path | None, text: str) -> str:
    ending = tail(log) if log else "\n".join(text.splitlines()[-15:])
    return f":\n{ending}" if ending.strip() else ""


def _short(words: list[str]) -> str:
    line = " ".join(words)
    return line if len(line) < 160 else line[:157] + "..."


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[str]) -> None:
    _kill(process)
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        process.communicate(timeout=5)
