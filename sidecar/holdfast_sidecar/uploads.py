"""Carries this pod's snapshots to the stores when the coordinator orders it, and answers with `Reached`.

The slot is leased at once, in the same breath in which the order is read: orders arrive in sequence, and the slot can be
reused only after a later one says that a newer step is committed. So a step that is ordered is a step that is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from holdfast_core.arena import ArenaError
from holdfast_core.durable import Shard
from holdfast_core.manifest import CorruptShard
from holdfast_core.messages import Reached
from holdfast_core.timeline import Copy

from .arenas import Arenas
from .metrics import Metrics
from .slots import SlotView
from .stores.base import StoreError
from .stores.level import Level

IN_MEMORY = "in memory: "  # begins an error that is not the store's
_RENEW_SECONDS = 2.0
_log = logging.getLogger(__name__)
Report = Callable[[Reached], None]


class Uploads:
    """Uploads of the current attempt: at most one step a store, all local ranks of it side by side."""

    def __init__(self, arenas: Arenas, levels: Mapping[str, Level], metrics: Metrics) -> None:
        self._arenas, self._levels, self._metrics = arenas, levels, metrics
        self._tasks: dict[str, tuple[Copy, list[asyncio.Task[None]]]] = {}
        self._results: dict[tuple[str, int], Reached] = {}

    @property
    def busy(self) -> bool:
        """Whether any upload is in flight."""
        return any(not t.done() for _, tasks in self._tasks.values() for t in tasks)

    @property
    def results(self) -> tuple[Reached, ...]:
        """The last answer for each store and rank; said again to a coordinator that comes back."""
        return tuple(self._results.values())

    def start(self, attempt: int, store: str, copy: Copy, report: Report) -> None:
        """Upload a step, unless that is being done or was done. An older upload to the same store is given up."""
        level = self._levels.get(store)
        running = self._tasks.get(store)
        if level is None:
            return
        if running and running[0] == copy and not self._has_failed(store, copy):
            self._say_again(store, report)
            return
        self._cancel(store)
        tasks = [self._begin(attempt, level, rank, copy, report) for rank in self._arenas.ranks]
        self._tasks[store] = (copy, tasks)

    def _has_failed(self, store: str, copy: Copy) -> bool:
        return any(r.error and r.copy == copy and s == store for (s, _), r in self._results.items())

    def _say_again(self, store: str, report: Report) -> None:
        """Another rank failed, so the step is ordered again; what this pod has done for it still stands."""
        for (name, _), result in self._results.items():
            if name == store:
                report(result)

    def _begin(self, attempt: int, level: Level, rank: int, copy: Copy, report: Report) -> asyncio.Task[None]:
        self._results.pop((level.name, rank), None)
        view = self._arenas.find(rank, copy)
        release = self._arenas.lease(view) if view else None
        task = asyncio.create_task(self._upload(attempt, level, rank, copy, view, report))
        if release is not None:
            task.add_done_callback(lambda _: release())
        return task

    async def _upload(self, attempt: int, level: Level, rank: int, copy: Copy, view: SlotView | None, report: Report) -> None:
        shard, error = None, ""
        try:
            shard = await self._write(level, rank, copy, view)
        except StoreError as problem:
            error = f"rank {rank}: {problem}"
        except (ArenaError, CorruptShard) as problem:
            error = f"{IN_MEMORY}rank {rank}: {problem}"
        if error:
            _log.warning("upload of step %d to %s failed: %s", copy.step, level.name, error)
        result = Reached(attempt, level.name, rank, copy, shard, error)
        self._results[level.name, rank] = result
        report(result)

    async def _write(self, level: Level, rank: int, copy: Copy, view: SlotView | None) -> Shard:
        if view is None:
            raise ArenaError(f"step {copy.step} is no longer in memory")
        try:
            shard = await level.call(lambda steps, pulse: steps.write_shard(copy, view, pulse))
        except StoreError as error:
            level.upload_failed(error, need=view.slot.data_bytes + view.slot.manifest_bytes)
            raise
        except CorruptShard:
            view.clear()  # never offered again, neither for a restore nor for an upload
            raise
        level.upload_worked()
        level.uploaded_bytes += shard.nbytes
        self._metrics.count(self._metrics.uploaded, level.name, by=shard.nbytes)
        return shard

    def _cancel(self, store: str) -> None:
        for task in self._tasks.pop(store, (None, []))[1]:
            task.cancel()

    def cancel_all(self) -> None:
        """A new attempt: whatever the old one was writing is void."""
        for store in list(self._tasks):
            self._cancel(store)
        self._results.clear()

    async def renew_leases(self) -> None:
        """Keep the slots of uploads in flight. Never ends."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            self._arenas.renew()
