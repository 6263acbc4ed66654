"""`resilient`: runs the script's function, leaves it when its attempt is over, and runs it again in the next attempt.

    train() raises what a peer's death looks like   -> parked, and told: this rank failed, with code 1
    the launcher says park                          -> train() is interrupted, parked
    train() raises anything else, or returns        -> so does resilient: an ordinary process again

Parked means that nothing of the old attempt is left that could write: its Checkpointers are closed, its frames cleared, its
process groups gone. A process that can't get there is no use to anybody, and ends.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from .._log import note
from . import control, groups, live

P = ParamSpec("P")
T = TypeVar("T")
_FAILED = 1  # the exit code of a process whose script raised
_control: control.Control | None = None
_groups: list[Any] = []  # see groups.hold


def resilient(train: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `train`, and call it again in this same process when another rank has failed; returns what it returns.

    Example::

        def train() -> None:
            dist.init_process_group()             # a new group in each call: RANK, MASTER_PORT, ... are the new attempt's
            model = DistributedDataParallel(...)
            ckpt = holdfast.Checkpointer(model=model, ...)
            for step in ckpt.steps(total): ...    # restores the step that all ranks have

        holdfast.resilient(train)

    `train` must make process groups, what wraps them (DDP) and the Checkpointer anew in each call. What it made is dropped
    before the next call, process groups are destroyed also when it returns; what it reads from outside keeps the values that
    it has. In a new attempt `holdfast.Interrupted` is raised in `train`, wherever it is; let it pass. A process that is not
    back within HOLDFAST_REBUILD_SECONDS (default 5) is killed and a new one takes its place.

    An error of the script's own ends the process, as without `resilient`. Outside a Holdfast launcher, or in another thread
    than the main one, `train` is just called.
    """
    line = _line()
    if line is None or line.inside or not line.join():
        return train(*args, **kwargs)
    return _Rebuilds(line, lambda: train(*args, **kwargs)).run()


def _line() -> control.Control | None:
    global _control  # noqa: PLW0603 - one line a process
    if _control is None:
        _control = control.adopt(groups.release)
        live.on_register(lambda: _groups.extend(groups.hold()))
    return _control


@dataclass
class _Outcome(Generic[T]):
    """How a call ended: with a value, or with an error."""

    value: T | None = None
    error: BaseException | None = None


class _Rebuilds(Generic[T]):
    def __init__(self, line: control.Control, call: Callable[[], T]) -> None:
        self._line = line
        self._call = call
        self._had_groups = groups.exist()

    def run(self) -> T:
        greeting = ""
        while True:
            outcome = self._once(greeting)
            if not self._line.interrupted and not (outcome.error and groups.peer_failed(outcome.error)):
                return self._finish(outcome)
            code = self._end_attempt(outcome)
            del outcome
            self._wait(code)
            greeting = "back"

    def _once(self, greeting: str) -> _Outcome[T]:
        try:
            return self._guarded(greeting)
        except BaseException as error:  # noqa: BLE001 - Interrupted, and in the moment between two lines of `_guarded`
            self._line.leave()
            return _Outcome(error=error)

    def _guarded(self, greeting: str) -> _Outcome[T]:
        try:
            self._line.enter()
            if greeting:
                self._line.say(greeting)
            return _Outcome(self._call())
        finally:
            self._line.leave()

    def _finish(self, outcome: _Outcome[T]) -> T:
        self._line.say("left")
        if outcome.error is not None:
            raise outcome.error
        if not self._had_groups:
            _drop_groups()
        return outcome.value  # type: ignore[return-value]  # None only if T is

    def _end_attempt(self, outcome: _Outcome[Any]) -> int | None:
        """Let go of all that belongs to the attempt; the code with which the process would have exited by itself."""
        code = None
        if not self._line.interrupted and outcome.error is not None:
            code = _FAILED
            traceback.print_exception(outcome.error)
        try:
            _groups.extend(groups.hold())
            checkpointers = live.current()
            if self._line.interrupted:
                live.abandon(checkpointers)
            _clear(outcome)
            gc.collect()  # DDP is full of cycles
            _drop_groups()  # before what may take longer: other ranks may wait at the other end of their sockets
            live.close(checkpointers)
        except BaseException as error:  # noqa: BLE001 - whatever it is: this process can't vouch for itself
            note(f"this process can't be kept, ending it: {type(error).__name__}: {error}")
            os._exit(_FAILED)
        return code

    def _wait(self, code: int | None) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        changes = self._line.parked(code)
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        note(f"kept for attempt {os.environ.get('HOLDFAST_ATTEMPT', '?')}")


def _drop_groups() -> None:
    groups.destroy()
    _groups.clear()


def _clear(outcome: _Outcome[Any]) -> None:
    """The frames of the call hold the model, its process group and its Checkpointer."""
    if outcome.error is not None:
        for error in groups.chain(outcome.error):
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
    outcome.error = outcome.value = None
