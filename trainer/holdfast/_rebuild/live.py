"""The Checkpointers of this process: each registers itself. One that an attempt has left must not write any more."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Protocol


class _Closable(Protocol):
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


def close(checkpointers: Iterable[_Closable]) -> None:
    """Shut them: no thread of theirs touches an arena afterwards. Bounded by each one's own `close`."""
    for checkpointer in checkpointers:
        checkpointer.close()
        _live.discard(checkpointer)
