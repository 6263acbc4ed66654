"""What a measured system does in its own process, and the plain copy that is its bound."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from ..states import State


class Backend(Protocol):
    """One way to save a state and get it back. Made by the function `make(variant)` of its module.

    `fences_itself`: the optimizer's step waits for what it needs; nobody has to call `before_change` before it.
    """

    fences_itself: bool

    def open(self, state: State, folder: Path) -> None:
        """Get ready; `folder` lies in memory (tmpfs) and is this system's alone."""

    def save(self, step: int) -> None:
        """As a training loop would call it after each step; returns when the loop may go on. Includes whatever must be waited
        for first, such as an earlier save that is still under way."""

    def before_change(self) -> None:
        """Called before the state changes: waits if the system still reads from it and does not see to that itself."""

    def wait(self) -> None:
        """Until the last save is whole."""

    def restore(self) -> float:
        """Bring the last save back into the live state; returns the seconds it took."""

    def facts(self) -> dict[str, Any]:
        """What the system says about its last save."""

    def close(self) -> None:
        """Let go of everything."""


class Base:
    """For systems that have nothing special to do here."""

    fences_itself = False
    state: State
    folder: Path

    def open(self, state: State, folder: Path) -> None:
        """See Backend."""
        self.state, self.folder = state, folder

    def before_change(self) -> None:
        """Nothing is read behind the loop's back."""

    def wait(self) -> None:
        """Saving was synchronous."""

    def facts(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def close(self) -> None:
        """Nothing to let go of."""


def make(system: str) -> Backend:
    """The backend of a system, by its name in `systems`."""
    from . import by_name

    found = by_name(system)
    backend: Backend = importlib.import_module(f".{found.module}_", __package__).make(found.variant)
    return backend
