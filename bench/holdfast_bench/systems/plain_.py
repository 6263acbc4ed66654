"""The synchronous plain copy into shared memory: the least that any save of the state can cost."""

from __future__ import annotations

from pathlib import Path

from ..shared import PlainCopy
from ..states import State
from .base import Base


class Plain(Base):
    """See the module."""

    def open(self, state: State, folder: Path) -> None:
        """See Backend."""
        super().open(state, folder)
        self._copy = PlainCopy(state.tensors(), folder / "plain", whole=True)

    def save(self, step: int) -> None:
        """See Backend."""
        self._copy.copy_in()

    def restore(self) -> float:
        """See Backend."""
        return self._copy.copy_out()


def make(variant: str) -> Plain:
    """See `base.make`."""
    return Plain()
