"""Runs other programs: bounded, in sessions of their own (a Ctrl-C reaches only us, and we pass it on once)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import DemoError

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0  # seconds that an interrupted program may use to clean up


def run(
    words: Sequence[str | Path],
    *,
    seconds: float = 60.0,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    show: bool = False,
    check: bool = True,
) -> str:
    """Output of a program. Raises DemoError with the end of its stderr. `show`: its output goes to our stderr as it comes."""
    argv = [str(word) for word in words]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=ROOT,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(input, timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        raise DemoError(f"`{_brief(argv)}` did not end within {seconds:.0f} s") from None
    except BaseException:
        _stop(process)
        raise
    if check and process.returncode != 0:
        raise DemoError(f"`{_brief(argv)}` failed ({process.returncode}): {_end(err or out or '')}")
    return out or ""


def _stop(process: subprocess.Popen[str]) -> None:
    """SIGINT lets `cluster up` and friends tidy up; who does not end in time is killed."""
    for number, patience in ((signal.SIGINT, _PATIENCE), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            break
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _brief(argv: Sequence[str]) -> str:
    words = " ".join([Path(argv[0]).name, *argv[1:]])
    return words if len(words) <= 120 else f"{words[:117]}..."


def _end(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-6:]) or "no output"
