"""Holds copy threads at the door, so that a test decides what happens before a background copy and what after it."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator

import pytest
from holdfast_core.fastcopy import Batch

_SECONDS = 30.0


class Background:
    """Copies on other threads than the test's wait from `hold` until `release`, or raise what `error` says."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.arrived = threading.Event()
        self.error: Exception | None = None

    def hold(self) -> None:
        self.arrived.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def enter(self) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        self.arrived.set()
        if not self._open.wait(_SECONDS):
            raise TimeoutError("the test held the copies for too long")
        if self.error is not None:
            raise self.error


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """What copy threads meet in this test."""
    gate, real = Background(), Batch.run

    def run(batch: Batch, base: int, stop: array[int] | None = None) -> int:
        gate.enter()
        return real(batch, base, stop)

    monkeypatch.setattr(Batch, "run", run)
    yield gate
    gate.release()
