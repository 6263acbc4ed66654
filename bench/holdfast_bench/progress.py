"""Lines that say what is being done, on stderr, with the seconds since the start."""

from __future__ import annotations

import sys
import time

_START = time.monotonic()


def say(text: str) -> None:
    """One line, at once."""
    sys.stderr.write(f"[{time.monotonic() - _START:5.0f}s] {text}\n")
    sys.stderr.flush()
