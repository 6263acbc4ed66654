"""The preparation of an attempt: old processes dead, void snapshots forgotten, the source's step verified in RAM.

After it, each local rank has the step in a slot that its trainer only has to map. Nothing is believed on the way: a
snapshot in RAM or in a store that does not agree with its checksums fails the preparation, and the planner takes the next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from holdfast_core import arena
from holdfast_core.arena import NO_STEP, ArenaError
from holdfast_core.manifest import CorruptShard, SlotManifest, dump
from holdfast_core.messages import MEMORY, PEERS, Command, Source
from holdfast_core.timeline import Copy

from .arenas import Arenas
from .launcher import Launcher
from .metrics import Metrics
from .peers import PeerError
from .replication import Replicator
from .slots import NoMemory, SlotView
from .stores.base import StoreError
from .stores.lane import Pulse
from .stores.level import Level
from .stores.steps import Steps

_STOP_LIMIT = 10.0  # seconds beyond the grace
_log = logging.getLogger(__name__)


class PrepareFailed(Exception):
    """The attempt can't start here. `source` is set if it is the source that can't be used; `passing`: at this moment."""

    def __init__(self, message: str, source: Source | None = None, *, passing: bool = False) -> None:
        super().__init__(message)
        self.source, self.passing = source, passing


class Progress:
    """Bytes brought so far, counted by the threads that bring them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        """So many more."""
        with self._lock:
            self.nbytes += nbytes


@dataclass
class Preparation:
    """One run of it. Cancelled when a higher attempt arrives."""

    arenas: Arenas
    launcher: Launcher
    levels: Mapping[str, Level]
    metrics: Metrics
    replicator: Replicator | None = None
    progress: Progress = field(default_factory=Progress)

    async def run(self, command: Command) -> None:
        """All steps in order; raises PrepareFailed."""
        self.arenas.fence(command.attempt)
        if not await self.launcher.stopped(command.attempt - 1, command.grace_seconds, _STOP_LIMIT):
            raise PrepareFailed("processes of the last attempt did not end: look at the trainer container")
        if command.source is not None and command.source.level == MEMORY:
            self._require_intact(command.source)
        await asyncio.to_thread(self._make_room, command)
        if self.replicator is not None:
            self.replicator.prepare(command)
        if command.source is not None:
            await self._load(command.source, command)
        self.arenas.commit(command.source.step if command.source else NO_STEP)

    def _require_intact(self, source: Source) -> None:
        """Before broken files are deleted: they are why the source can't be used, and the error should say so."""
        for rank in self.arenas.ranks:
            try:
                self.arenas.require(rank, Copy(source.step, source.attempt))
            except ArenaError as error:
                self.arenas.drop_broken()
                raise PrepareFailed(f"rank {rank}: {error}", replace(source, rank=rank)) from error

    def _make_room(self, command: Command) -> None:
        self.arenas.drop_broken()
        self.arenas.clear_void(command.history)
        try:
            self.arenas.prefault()
        except (ArenaError, OSError) as error:
            raise PrepareFailed(str(error)) from error

    async def _load(self, source: Source, command: Command) -> None:
        ranks = [asyncio.create_task(self._load_rank(rank, source, command)) for rank in self.arenas.ranks]
        try:
            await asyncio.gather(*ranks)
        finally:
            for task in ranks:
                task.cancel()

    async def _load_rank(self, rank: int, source: Source, command: Command) -> None:
        """From the level that the rank was told; its own memory comes first in any case. Each rank's trouble is its own."""
        copy, level = Copy(source.step, source.attempt), self._level(rank, source, command)
        try:
            found = await asyncio.to_thread(self._verified_in_memory, rank, copy) if level != MEMORY else None
            nbytes = found if found is not None else await self._bring(rank, copy, level, command.attempt)
        except NoMemory as error:
            raise PrepareFailed(str(error)) from error  # any source would meet the same
        except StoreError as error:
            raise PrepareFailed(f"rank {rank}: {level}: {error}", replace(source, level=level)) from error
        except (ArenaError, CorruptShard, PeerError) as error:
            passing = isinstance(error, PeerError) and error.kind.passing
            text, suspect = f"rank {rank}: {level}: {error}", replace(source, level=level, rank=rank)
            raise PrepareFailed(text, suspect, passing=passing) from error
        self.metrics.count(self.metrics.restored, level if found is None else MEMORY, by=nbytes)

    def _level(self, rank: int, source: Source, command: Command) -> str:
        """With levels by rank, who is not named has it in memory."""
        return command.levels.get(rank, MEMORY if command.levels else source.level)

    async def _bring(self, rank: int, copy: Copy, level: str, attempt: int) -> int:
        if level == MEMORY:
            return await asyncio.to_thread(self._verify, self.arenas.require(rank, copy))
        if level == PEERS:
            if self.replicator is None:
                raise ArenaError("this pod has no connection to its peers")
            return await self.replicator.rebuild(rank, copy, attempt, self.progress.add)
        return await self._fetch(rank, copy, level, attempt)

    def _verify(self, view: SlotView) -> int:
        try:
            view.verify()
        except CorruptShard:
            view.clear()  # never offered again
            raise
        return view.slot.data_bytes

    def _verified_in_memory(self, rank: int, copy: Copy) -> int | None:
        view = self.arenas.find(rank, copy)
        try:
            return self._verify(view) if view else None
        except (ArenaError, CorruptShard) as error:
            _log.warning("rank %d: step %d in memory can't be used: %s", rank, copy.step, error)
            return None

    async def _fetch(self, rank: int, copy: Copy, name: str, attempt: int) -> int:
        level = self.levels.get(name)
        if level is None:
            raise StoreError(f"there is no store of the name {name!r}")
        return await level.call(lambda steps, pulse: self._fetch_blocking(steps, pulse, rank, copy, attempt))

    def _fetch_blocking(self, steps: Steps, pulse: Pulse, rank: int, copy: Copy, attempt: int) -> int:
        target: list[tuple[arena.ArenaHeader, memoryview, int]] = []
        pulse.heard = self.progress.add

        def allocate(manifest: SlotManifest) -> memoryview:
            file, index, data = self.arenas.allocate(rank, manifest, copy.step)
            target.append((file.header, file.buf, index))
            return data

        manifest = steps.fetch_shard(copy, rank, allocate, pulse)
        header, buf, index = target[0]
        pulse.beat()
        arena.seal(
            buf, header, index, step=copy.step, attempt=copy.attempt, writer=attempt,
            data_bytes=manifest.data_bytes, manifest=dump(manifest),
        )  # fmt: skip
        return self._verify(self.arenas.require(rank, copy))
