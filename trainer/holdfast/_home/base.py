"""What the Checkpointer needs from wherever snapshots live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast_core.arena import Slot

from .._capture.report import SealStats
from .._capture.slot import Identity, Written
from .._state.mapping import Mapped


@dataclass(frozen=True)
class Located:
    """The snapshot to resume from."""

    source: Mapped
    slot: Slot


class Home(Protocol):
    """A place for snapshots. Only `locate` and `refuse` may end the process; nothing here blocks without a bound."""

    @property
    def identity(self) -> Identity:
        """This rank and the attempt that its snapshots are written in; valid after `locate`."""

    def locate(self) -> Located | None:
        """The snapshot that all ranks resume from, or None to start from scratch. Called once, first."""

    def restored(self, step: int, seconds: float) -> None:
        """The state of `step` is loaded and verified (-1: started from scratch)."""

    def refuse(self, step: int, problem: str) -> Located:
        """The located snapshot turned out to be corrupt: another one to load over it, or it does not return."""

    def target(self, slot_bytes: int) -> Mapped:
        """An arena with slots of at least this size; raises SnapshotSkipped with the reason."""

    def sealed(self, target: Mapped, written: Written, step: int, stats: SealStats) -> None:
        """A slot was published. Called from any thread, as is `skipped`."""

    def skipped(self, step: int, reason: str) -> None:
        """This step has no snapshot."""

    def progress(self, step: int, loss: float | None) -> None:
        """A step is finished."""

    def close(self) -> None:
        """Say what is left to say, within a second."""
