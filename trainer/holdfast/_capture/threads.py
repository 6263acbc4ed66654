"""Copy threads: started when first needed, ended with what they belong to."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable

_YIELDING = 10  # niceness of a background copy: the trainer's own threads go first


class Worker:
    """One thread that runs what it is given, in order. It lets no exception out and keeps nobody alive."""

    def __init__(self, name: str, yielding: bool) -> None:
        tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._tasks = tasks
        self._thread = threading.Thread(target=_serve, args=(tasks, yielding), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, tasks.put, None)

    def submit(self, task: Callable[[], object]) -> None:
        """Run it soon."""
        self._tasks.put(task)

    def end(self) -> None:
        """Finish what was submitted, then end."""
        self._end()

    def join(self, timeout: float) -> None:
        """Wait until it has ended, for so many seconds."""
        self._thread.join(timeout)


def _serve(tasks: queue.SimpleQueue[Callable[[], object] | None], yielding: bool) -> None:
    if yielding:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _YIELDING)
    while (task := tasks.get()) is not None:
        task()
        del task


class Crew:
    """`threads` workers, of which only those that are asked for exist."""

    def __init__(self, name: str, yielding: bool) -> None:
        self._name, self._yielding = name, yielding
        self._workers: list[Worker] = []

    def submit(self, tasks: list[Callable[[], object]]) -> None:
        """Run each on a thread of its own."""
        while len(self._workers) < len(tasks):
            self._workers.append(Worker(f"{self._name}-{len(self._workers)}", self._yielding))
        for worker, task in zip(self._workers, tasks, strict=False):
            worker.submit(task)

    def end(self, timeout: float) -> None:
        """End all of them, and wait for that, for so many seconds."""
        workers, self._workers = self._workers, []
        deadline = time.monotonic() + timeout
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
