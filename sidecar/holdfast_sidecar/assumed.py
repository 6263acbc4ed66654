"""The index that a spare has taken over, kept for a restart of its container: the environment still says that it is a spare."""

from __future__ import annotations

import os
from pathlib import Path


def save(path: Path, index: int) -> None:
    """Write it down, whole or not at all: who is killed in between must be able to start again. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(str(index))
    os.replace(temporary, path)


def load(path: Path) -> int | None:
    """What was written down; None if nothing was, or if it is no index."""
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return None
    return int(text) if text.isascii() and text.isdigit() else None
