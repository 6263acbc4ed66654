"""One line on stderr at a time, prefixed: the only way in which this package speaks by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable

_sink: Callable[[str], None] | None = None


def redirect(sink: Callable[[str], None]) -> None:
    """Let somebody else write the lines: the launcher, which must never wait for a full stderr."""
    global _sink  # noqa: PLW0603 - one process, one log
    _sink = sink


def note(text: str) -> None:
    """Say something; a closed stderr is no reason to fail."""
    if _sink is not None:
        _sink(f"holdfast: {text}\n")
        return
    try:
        sys.stderr.write(f"holdfast: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


class Once:
    """Says each distinct thing once, so that a failure in every step does not flood the log."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def note(self, topic: str, text: str) -> None:
        """Say `text` unless something was said about `topic` before."""
        if topic not in self._said:
            self._said.add(topic)
            note(text)

    def forget(self, topic: str) -> None:
        """The topic is over: the next time it is said again."""
        self._said.discard(topic)
