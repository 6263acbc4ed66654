"""Holdfast in a training script: `holdfast.Checkpointer` and five lines (see its docstring).

The launcher imports this package too, and must stay light: torch is loaded only when `Checkpointer` is touched (PEP 562).
Neighbours: `_state` (what is captured, and how it is stored), `_home` (where snapshots go: the sidecar's shared memory, or
a local directory), `_launcher` (starts the processes that run the script), `_rebuild` (`resilient`: a process that outlives
the failure of another rank), `cli` (`holdfast run`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from holdfast_core import __version__

if TYPE_CHECKING:
    from ._capture.report import CaptureReport
    from ._rebuild.loop import resilient
    from .checkpointer import Checkpointer
    from .errors import AgentUnreachable, HoldfastError, Interrupted, UnsupportedValue

_LAZY = {
    "CaptureReport": "_capture.report",
    "Checkpointer": "checkpointer",
    "AgentUnreachable": "errors",
    "HoldfastError": "errors",
    "Interrupted": "errors",
    "UnsupportedValue": "errors",
    "resilient": "_rebuild.loop",
}

__all__ = [
    "AgentUnreachable",
    "CaptureReport",
    "Checkpointer",
    "HoldfastError",
    "Interrupted",
    "UnsupportedValue",
    "__version__",
    "resilient",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _map_ahead() -> None:
    """In a training script, which imports us early: see `_state.ahead`. Launcher, standby and command line restore nothing."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name not in ("", "-m", "holdfast") and ("HOLDFAST_AHEAD" in os.environ or not os.environ.get("HOLDFAST_SOCKET")):
        from ._state import ahead

        ahead.begin()


_map_ahead()
