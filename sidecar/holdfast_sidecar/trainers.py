"""What the trainer processes beside us say: where to restore from, room for snapshots, steps, sealed slots."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast_core.arena import ArenaError
from holdfast_core.local import (
    Attach,
    Attached,
    Corrupt,
    Error,
    Message,
    Progress,
    Reserve,
    Reserved,
    Restored,
    Sealed,
    Skipped,
)
from holdfast_core.timeline import Copy

from .arenas import Arenas
from .metrics import SKIP_REASONS, Metrics
from .pace import Pace, usable
from .ranks import Ranks
from .record import Record

_log = logging.getLogger(__name__)
NO_SLOT = "no_slot"
_SKIP_WORDS = (
    (("no free slot",), NO_SLOT),
    (("fenced", "is over"), "fenced"),
    (("memory.size", "are needed", "no memory"), "too_small"),
    (("sidecar",), "agent"),
)
_Notice = Sealed | Skipped | Progress | Restored | Corrupt


class Trainers:
    """Messages of attempts other than the current one change nothing (a late word of an old one is no news)."""

    def __init__(
        self,
        arenas: Arenas,
        ranks: Ranks,
        metrics: Metrics,
        record: Callable[[], Record],
        sealed: Callable[[int, Copy], None],
        skipped: Callable[[int, int], None],
        changed: Callable[[bool], None],
    ) -> None:
        self._arenas, self._ranks, self._metrics = arenas, ranks, metrics
        self._record, self._sealed, self._skipped, self._changed = record, sealed, skipped, changed
        self.skipped = 0
        self._last: dict[int, Copy] = {}
        self.pace = Pace()

    async def request(self, message: Attach | Reserve) -> Message:
        """Answer a request."""
        problem = self._refuse(message.rank, message.attempt)
        if problem:
            return Error(problem)
        if isinstance(message, Attach):
            return self._attach(message)
        return await self._reserve(message)

    def _refuse(self, rank: int, attempt: int) -> str:
        current = self._record().attempt
        if attempt != current:
            return f"attempt {attempt} is over: attempt {current} runs now"
        if rank not in self._ranks:
            return f"rank {rank} is not in this pod"
        return ""

    def _attach(self, message: Attach) -> Message:
        copy = self._record().source_copy
        if copy is None:
            return Attached()
        view = self._arenas.find(message.rank, copy)
        if view is not None:
            return Attached(str(view.file.path), view.slot.index, copy.step)
        rank = self._ranks[message.rank]
        if rank.restored_step is not None or rank.step > copy.step:
            return Attached()  # it reconnects in the middle of training: nothing is to be restored any more
        return Error(f"step {copy.step} is not in memory any more: a new attempt is needed")

    async def _reserve(self, message: Reserve) -> Message:
        try:
            file = await asyncio.to_thread(self._arenas.reserve, message.rank, message.slot_bytes)
        except (ArenaError, OSError) as error:
            _log.error("no arena for rank %d: %s", message.rank, error)
            self._changed(True)
            return Error(str(error))
        self._changed(True)
        return Reserved(str(file.path))

    def notice(self, message: _Notice) -> None:
        """Take note of something."""
        if self._refuse(message.rank, message.attempt):
            return
        if isinstance(message, Sealed):
            self._on_sealed(message)
        elif isinstance(message, Skipped):
            self._on_skipped(message)
        elif isinstance(message, Progress):
            self._ranks.progress(message.rank, message.step, message.loss)
            self.pace.progress(message.rank, message.attempt, message.step)
            self._changed(False)
        elif isinstance(message, Restored):
            self._ranks.restored(message.rank, message.step)
            self._changed(True)
        else:
            _log.warning("rank %d refused its snapshot: %s", message.rank, message.message)
            self._ranks.corrupt(message.rank, message.message)
            self._changed(True)

    def _on_sealed(self, message: Sealed) -> None:
        """Believe the slot, not the message."""
        view = self._arenas.at(message.rank, message.path, message.slot)
        if view is None or view.slot.step != message.step or view.slot.attempt != message.attempt:
            return
        self._sealed(message.rank, view.copy)
        if self._last.get(message.rank) == view.copy:
            return  # said again after a reconnect
        self._last[message.rank] = view.copy
        told = usable(message)
        self.pace.sealed(told)
        self._metrics.snapshot(told, view.slot.data_bytes)
        self._changed(False)

    def _on_skipped(self, message: Skipped) -> None:
        self.skipped += 1
        reason = skip_reason(message.reason)
        self._metrics.count(self._metrics.skipped, str(message.rank), reason)
        if reason == NO_SLOT:
            self._skipped(message.rank, message.step)
        self._changed(False)


def skip_reason(text: str) -> str:
    """One of a few words for the trainer's sentence, so that the metric's label stays bounded."""
    if text in SKIP_REASONS:
        return text
    return next((reason for words, reason in _SKIP_WORDS if any(w in text for w in words)), "other")
