"""The memory that saving costs the trainer's process, beyond what lies in shared memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import states
from ..smaps import own
from ..systems import base


class Task:
    """Verbs: open, sample, facts, quit."""

    def __init__(self, system: str) -> None:
        self._backend = base.make(system)
        self._step = 0

    def open(self, nbytes: int) -> dict[str, Any]:
        """Make the state, note the memory, get the system ready."""
        self._state = states.uniform(nbytes)
        self._before = own()
        self._backend.open(self._state, Path(os.environ["HOLDFAST_BENCH_FOLDER"]))
        return {"nbytes": self._state.nbytes}

    def sample(self) -> dict[str, float]:
        """A step and a save; bytes that the process has grown by since before the first: the most of three looks."""
        self._backend.before_change()
        self._state.touch()
        self._backend.save(self._step)
        looks = [own(), own()]
        self._backend.wait()
        self._step += 1
        return {"grown": float(max(*looks, own()) - self._before)}

    def facts(self) -> dict[str, Any]:
        """What the system says about its last save."""
        return self._backend.facts()

    def quit(self) -> None:
        """Let go of everything."""
        self._backend.close()
