"""The Checkpointers of this process: each registers itself. One that an attempt has left must not write any more."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from .control import THREAD as CONTROL_THREAD

_JOIN_SECONDS = 4.0
_PREFIX = "holdfast-"  # of the names of all threads that this package starts


class _Closable(Protocol):
    def abandon(self) -> None: ...
    def close(self) -> None: ...


_live: weakref.WeakSet[_Closable] = weakref.WeakSet()
_listeners: list[Callable[[], None]] = []


def register(checkpointer: _Closable) -> None:
    """Called by each new Checkpointer."""
    _live.add(checkpointer)
    for listener in _listeners:
        listener()


def on_register(listener: Callable[[], None]) -> None:
    """Have it called for each new Checkpointer."""
    _listeners.append(listener)


def current() -> list[_Closable]:
    """Those that exist. Held by this list, they stay long enough to be closed."""
    return list(_live)


def abandon(checkpointers: Iterable[_Closable]) -> None:
    """Give up their snapshots under way: code that was interrupted anywhere may have been in the middle of one."""
    for checkpointer in checkpointers:
        checkpointer.abandon()


def close(checkpointers: Iterable[_Closable]) -> None:
    """Shut them: no thread of theirs touches an arena afterwards. Raises RuntimeError if one still might."""
    for checkpointer in checkpointers:
        checkpointer.close()
        _live.discard(checkpointer)
    _join(time.monotonic() + _JOIN_SECONDS)


def _join(deadline: float) -> None:
    """Wait for the copy threads: one piece that lands late would land in a snapshot of the next attempt."""
    copying = [t for t in threading.enumerate() if t.name.startswith(_PREFIX) and t.name != CONTROL_THREAD]
    for thread in copying:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            raise RuntimeError(f"thread {thread.name} still copies after {_JOIN_SECONDS:.0f} s")
