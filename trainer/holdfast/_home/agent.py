"""Snapshots in shared memory that a sidecar owns. The sidecar may be restarted at any time; training goes on meanwhile:
a mapped arena needs no sidecar, and its notices are caught up after the reconnect.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NoReturn

from holdfast_core import local
from holdfast_core.arena import ArenaError, SlotState

from .._capture.report import SealStats
from .._capture.slot import Identity, Written
from .._log import note
from .._state.mapping import Mapped, open_arena
from ..errors import AgentUnreachable, HoldfastError, SnapshotSkipped
from .base import Located
from .link import AgentRefused, Link

EXIT_CORRUPT = 86  # the sidecar gave a snapshot that did not match its checksums: take another level
_ATTACH_SECONDS = 60.0
_RESERVE_SECONDS = 10.0  # the sidecar faults in the whole arena before it answers: about 2 GB/s
_RESERVE_CONNECT_SECONDS = 0.02
_CLOSE_SECONDS = 1.0


class AgentHome:
    """See `base.Home`."""

    def __init__(self, socket_path: str, *, rank: int, world_size: int, attempt: int) -> None:
        self.identity = Identity(rank, world_size, attempt)
        self._link = Link(socket_path, local.Attach(rank, attempt))
        self._mapped: Mapped | None = None
        self._next_reserve = 0.0
        self._reserve_problem = ""

    def locate(self) -> Located | None:
        """Ask the sidecar. Without an answer there is no safe step to start from: raises AgentUnreachable."""
        attach = local.Attach(self.identity.rank, self.identity.attempt)
        answer = self._link.request(attach, _ATTACH_SECONDS, connect_timeout=_ATTACH_SECONDS / 2)
        if not isinstance(answer, local.Attached):
            raise HoldfastError(f"the sidecar answered Attach with {type(answer).__name__}: mixed versions?")
        if not answer.path:
            return None
        try:
            source = open_arena(Path(answer.path))
            slot = source.slots()[answer.slot]
        except (ArenaError, OSError, IndexError) as error:
            self.refuse(answer.step, f"{answer.path}: {error}")
        if slot.state is not SlotState.SEALED or slot.step != answer.step:
            self.refuse(answer.step, f"slot {answer.slot} holds step {slot.step} ({slot.state.name})")
        return Located(source, slot)

    def restored(self, step: int, seconds: float) -> None:
        """Tell the sidecar."""
        self._link.notify(local.Restored(self.identity.rank, self.identity.attempt, step, seconds))

    def refuse(self, step: int, problem: str) -> NoReturn:
        """Report and end the process at once: other threads or collectives must not hold up the next level's try."""
        note(f"the snapshot of step {step} is corrupt: {problem}; exit {EXIT_CORRUPT}, the next level will be tried")
        self._link.notify(local.Corrupt(self.identity.rank, self.identity.attempt, step, problem))
        self._link.close(_CLOSE_SECONDS)
        os._exit(EXIT_CORRUPT)

    def target(self, slot_bytes: int) -> Mapped:
        """The reserved arena, asked for once and again when it must grow."""
        if self._mapped is None or self._mapped.header.slot_bytes < slot_bytes:
            self._mapped = self._reserve(slot_bytes)
        return self._mapped

    def _reserve(self, slot_bytes: int) -> Mapped:
        if time.monotonic() < self._next_reserve:
            raise SnapshotSkipped(self._reserve_problem)
        request = local.Reserve(self.identity.rank, self.identity.attempt, slot_bytes)
        try:
            answer = self._link.request(request, _RESERVE_SECONDS, _RESERVE_CONNECT_SECONDS)
            return self._fitting(answer, slot_bytes)
        except (AgentUnreachable, AgentRefused, ArenaError, OSError, SnapshotSkipped) as error:
            unreachable = isinstance(error, AgentUnreachable)
            self._next_reserve = time.monotonic() + (1.0 if unreachable else _RESERVE_SECONDS)
            self._reserve_problem = str(error)
            raise SnapshotSkipped(self._reserve_problem) from error

    @staticmethod
    def _fitting(answer: local.Message, slot_bytes: int) -> Mapped:
        if not isinstance(answer, local.Reserved):
            raise SnapshotSkipped(f"the sidecar answered Reserve with {type(answer).__name__}")
        mapped = open_arena(Path(answer.path))
        if mapped.header.slot_bytes < slot_bytes:
            raise SnapshotSkipped(f"the arena's slots have {mapped.header.slot_bytes} bytes, {slot_bytes} are needed")
        return mapped

    def sealed(self, target: Mapped, written: Written, step: int, stats: SealStats) -> None:
        """Tell the sidecar."""
        self._link.notify(
            local.Sealed(
                self.identity.rank, self.identity.attempt, step, str(target.path), written.slot, written.nbytes,
                stats.stall_seconds, stats.fence_seconds, stats.capture_seconds, stats.copied, stats.mode,
            )
        )  # fmt: skip

    def skipped(self, step: int, reason: str) -> None:
        """Tell the sidecar."""
        self._link.notify(local.Skipped(self.identity.rank, self.identity.attempt, step, reason))

    def progress(self, step: int, loss: float | None) -> None:
        """Tell the sidecar."""
        self._link.notify(local.Progress(self.identity.rank, self.identity.attempt, step, loss))

    def close(self) -> None:
        """Flush, bounded."""
        self._link.close(_CLOSE_SECONDS)
