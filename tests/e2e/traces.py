"""Keeps the logs of a job's sidecars, whatever becomes of their pods and nodes, and replays them against the model's rules.

The kubelet deletes a pod's logs with the pod, and a dead node can't be asked for them. But the nodes' disks are folders of this
machine: a second link to each file keeps it, and whatever is still written to it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from holdfast_demo.faults import SIDECAR
from holdfast_spec import replay


def note_damage(state: Path, job: str, attempt: int, steps: Iterable[int]) -> None:
    """Add to a job's trace what only the test knows: snapshots of these steps, by any attempt so far, are spoilt."""
    spoilt = [(step, of) for step in steps for of in range(1, attempt + 1)]
    _note(state, job, attempt, [{"what": "failed", "level": "memory", "rank": -1, "step": s, "of": of} for s, of in spoilt])


def note_dark(state: Path, job: str, attempt: int, pods: Iterable[str]) -> None:
    """These pods have lost power: the last lines of their logs may not have reached the disk."""
    _note(state, job, attempt, [{"what": "dark", "lost": list(pods)}])


def _note(state: Path, job: str, attempt: int, events: Iterable[dict[str, object]]) -> None:
    who = {"t": time.time(), "pod": "the test", "index": -1, "attempt": attempt}
    with (state / "traces" / job / "test.log").open("a", encoding="utf-8") as stream:
        stream.writelines(f"trace {json.dumps(who | event)}\n" for event in events)


class Traces:
    """Looks for new files in the background until closed."""

    def __init__(self, state: Path, namespace: str, job: str) -> None:
        self._pattern = f"{glob.escape(str(state))}/nodes/*/var-log/pods/{namespace}_{job}-*/{SIDECAR}/*.log"
        self.folder = state / "traces" / job
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="traces")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self._link()

    def _link(self) -> None:
        for path in map(Path, glob.iglob(self._pattern)):  # pathlib's raises when the kubelet removes a folder meanwhile
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                os.link(path, self.folder / f"{path.parent.parent.name.split('_')[1]}-{path.name}")

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(5)
        self._link()

    def contradictions(self) -> list[str]:
        """What the lines say that the rules do not allow."""
        return replay.check_files(sorted(self.folder.iterdir()))
