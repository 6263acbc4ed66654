"""Holdfast in a training script: `holdfast.Checkpointer` and five lines (see its docstring).

The launcher imports this package too, and must stay light: torch is loaded only when `Checkpointer` is touched (PEP 562).
Neighbours: `_state` (what is captured, and how it is stored), `_home` (where snapshots go: the sidecar's shared memory, or
a local directory), `_launcher` (starts the processes that run the script), `cli` (`holdfast run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast_core import __version__

if TYPE_CHECKING:
    from .checkpointer import Checkpointer
    from .errors import AgentUnreachable, HoldfastError, UnsupportedValue

_LAZY = {
    "Checkpointer": "checkpointer",
    "AgentUnreachable": "errors",
    "HoldfastError": "errors",
    "UnsupportedValue": "errors",
}

__all__ = ["AgentUnreachable", "Checkpointer", "HoldfastError", "UnsupportedValue", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
