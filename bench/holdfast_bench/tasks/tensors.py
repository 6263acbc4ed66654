"""Save and restore a state that nothing trains: stall, time until saved, time to restore, and the plain copy beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import states
from ..shared import PlainCopy
from ..systems import base

_RESTART_SECONDS = 100.0


class Task:
    """Verbs: open, save, background, restore, restart, bound, bound_out, facts, quit."""

    def __init__(self, system: str) -> None:
        self._system = system
        self._folder = Path(os.environ["HOLDFAST_BENCH_FOLDER"])
        self._backend: base.Backend | None = None
        self._step = 0

    def open(self, kind: str, nbytes: int = 0, threads: int = 0, whole: bool = False, parameters: int = 2500) -> dict[str, Any]:
        """Make the state and get the system ready. `threads`: of torch, 0 leaves its default. `whole`: see PlainCopy."""
        if threads:
            torch.set_num_threads(threads)
        self._state = (
            states.uniform(nbytes) if kind == "uniform" else states.small(parameters) if kind == "small" else states.lora()
        )
        self._copy = PlainCopy(self._state.tensors(), self._folder / "bound", whole=whole)
        self._copy.copy_in()
        self._backend = base.make(self._system)
        self._backend.open(self._state, self._folder)
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "nbytes": self._state.nbytes,
            "trainable": self._state.trainable_nbytes(),
            "tensors": len(self._state.tensors()),
        }

    @property
    def _open(self) -> base.Backend:
        if self._backend is None:
            raise RuntimeError("open comes first")
        return self._backend

    def save(self) -> dict[str, float]:
        """Change the state and save it: seconds until the loop may go on, may change the state again, and all is saved."""
        self._open.before_change()
        self._state.touch()
        start = time.perf_counter()
        self._open.save(self._step)
        stalled = time.perf_counter()
        self._open.before_change()
        changeable = time.perf_counter()
        self._open.wait()
        self._step += 1
        return {"stall": stalled - start, "changeable": changeable - start, "saved": time.perf_counter() - start}

    def background(self) -> dict[str, float]:
        """Save, and sleep until all is saved: nothing hurries the copy along."""
        self._open.before_change()
        self._state.touch()
        start = time.perf_counter()
        self._open.save(self._step)
        stalled = time.perf_counter()
        self._open.wait()
        self._step += 1
        return {"stall": stalled - start, "saved": time.perf_counter() - start}

    def restore(self) -> dict[str, Any]:
        """Spoil the state, restore the last save, and compare: a restore that did not happen is no time at all."""
        tensors = self._state.tensors()
        expected = [float(t.sum()) for t in tensors[:8]]
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
        seconds = self._open.restore()
        restored = [float(t.sum()) for t in self._state.tensors()[:8]]
        if restored != expected:
            raise RuntimeError("what was restored is not what was saved")
        return {"restore": seconds}

    def restart(self) -> dict[str, Any]:
        """Restore in a new process, which tells its own bound too, and compare. Only for systems whose saves outlive us."""
        self._open.close()
        script = Path(__file__).parents[2] / "restored.py"
        command = [sys.executable, str(script), str(self._state.nbytes), str(torch.get_num_threads())]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_RESTART_SECONDS, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        if answer.pop("sums") != [float(t.sum()) for t in self._state.tensors()[:8]] or answer.pop("step") < 0:
            raise RuntimeError("what was restored is not what was saved")
        return answer

    def bound(self) -> dict[str, float]:
        """One plain copy into shared memory."""
        return {"seconds": self._copy.copy_in()}

    def bound_out(self) -> dict[str, float]:
        """One plain copy back; the state keeps its values, because the copy in came from it."""
        self._copy.copy_in()
        return {"seconds": self._copy.copy_out()}

    def facts(self) -> dict[str, Any]:
        """What the system says about its last save."""
        return self._open.facts()

    def quit(self) -> None:
        """Let go of everything."""
        if self._backend is not None:
            self._backend.close()
