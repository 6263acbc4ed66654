"""What the environment says about captures."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .._log import note
from .tuner import Way


@dataclass(frozen=True)
class Settings:
    """`way`: None means that it is chosen by measurement. `every`: steps between snapshots, 0 if others decide."""

    way: Way | None = None
    verify: bool = False
    every: int = 0

    @staticmethod
    def from_environment() -> Settings:
        """HOLDFAST_CAPTURE (auto, sync, lazy, sync:THREADS, lazy:THREADS), HOLDFAST_VERIFY and HOLDFAST_EVERY."""
        verify = os.environ.get("HOLDFAST_VERIFY", "").lower() in ("1", "on", "true", "yes")
        return Settings(_way(os.environ.get("HOLDFAST_CAPTURE", "auto")), verify, _every(os.environ.get("HOLDFAST_EVERY", "")))


def _way(text: str) -> Way | None:
    mode, _, threads = text.strip().lower().partition(":")
    if mode in ("", "auto") and not threads:
        return None
    if mode in ("sync", "lazy") and (not threads or (threads.isdigit() and int(threads) > 0)):
        return Way(mode == "lazy", int(threads or 1))
    note(f"HOLDFAST_CAPTURE={text!r} is none of auto, sync, lazy, sync:THREADS, lazy:THREADS: taking auto")
    return None


def _every(text: str) -> int:
    if text.isdigit():
        return int(text)
    if text:
        note(f"HOLDFAST_EVERY={text!r} is not a number of steps: taking a snapshot of each")
    return 0
