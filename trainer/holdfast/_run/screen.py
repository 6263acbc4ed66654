"""What `holdfast run` shows: the script's output, a line for each recovery, and on a terminal a line of progress below."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from holdfast_core.messages import MEMORY
from holdfast_core.planner import Emit, Status, reasons

from .._log import note, redirect

_CLEAR = "\r\x1b[K"
_REDRAW_SECONDS = 0.2


class Screen:
    """On a terminal the script's output passes through a pipe, so that the progress line can stay below it."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._terminal = sys.stdout.isatty() and sys.stderr.isatty()
        self._progress = ""
        self._composed = 0.0
        self.pipe: int | None = None
        self.output: int | None = None
        if self._terminal:
            self.pipe, self.output = os.pipe()
            redirect(lambda line: self._write(line.encode()))

    def event(self, event: Emit) -> None:
        """Something happened to the job."""
        if event.reason in (reasons.RECOVERED, reasons.COMPLETED):
            note(event.message)
        elif event.reason == reasons.SNAPSHOT_INTERVAL:
            note(f"snapshots: {event.message}")
        elif self._verbose or event.reason in (reasons.JOB_FAILED, reasons.SOURCE_REJECTED):
            note(f"{event.reason}: {event.message}")
        elif event.warning and event.reason not in (reasons.POD_REPLACED, reasons.DRAINING):
            note(event.message.partition(" [")[0])

    def pump(self) -> None:
        """Pass on what the script has written."""
        if self.pipe is None:
            return
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(self.pipe, False)
            while data := os.read(self.pipe, 65536):
                self._write(data)

    def progress(self, status: Status) -> None:
        """Redraw the line."""
        if not self._terminal or time.monotonic() < self._composed + _REDRAW_SECONDS:
            return
        self._composed = time.monotonic()
        levels = ", ".join(f"{name} {level.step}" for name, level in status.checkpoints.items())
        goodput = f", goodput {status.goodput:.1%}" if status.goodput is not None else ""
        saved = f", saved: {levels}" if levels else f", nothing saved in {MEMORY} yet"
        before, self._progress = (
            self._progress,
            f"holdfast: {status.phase}, step {status.step}{saved}, attempt {status.attempt}{goodput}",
        )
        if self._progress != before:
            self._draw()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.pump()
        self._progress = ""
        if self._terminal:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def _write(self, data: bytes) -> None:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if data.endswith(b"\n"):
            self._draw()

    def _draw(self) -> None:
        if self._progress:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write(f"{_CLEAR}{self._progress[: max(0, width - 1)]}")
            sys.stderr.flush()
