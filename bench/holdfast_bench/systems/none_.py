"""No saves at all: what the others' cost is measured against."""

from __future__ import annotations

from .base import Base


class Nothing(Base):
    """See the module."""

    def save(self, step: int) -> None:
        """Costs nothing."""

    def restore(self) -> float:
        """There is nothing to restore."""
        raise RuntimeError("nothing was saved")


def make(variant: str) -> Nothing:
    """See `base.make`."""
    return Nothing()
