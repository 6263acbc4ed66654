"""The attempt: takes the operator's commands and moves through the phases.

    idle -> preparing -> prepared -> running -> [stopping ->] exited -> finished
               failed: the source, or this pod, could not be used; the next attempt is the planner's to decide

Every command is idempotent, fenced by its attempt. The record is saved before anything else follows from a change of phase.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from holdfast_core.arena import ArenaError
from holdfast_core.config import SidecarConfig
from holdfast_core.local import Launch
from holdfast_core.messages import MEMORY, PEERS, TOLD, Command, Order, Reached
from holdfast_core.timeline import Copy

from . import record as phases
from .arenas import Arenas
from .changes import Changes
from .group.coordinator import Coordinator
from .group.member import Member
from .launcher import Launcher
from .metrics import Metrics
from .prepare import Preparation, PrepareFailed, Progress
from .ranks import Ranks
from .record import Record, RecordFile
from .replication import Replicator
from .stores.level import Level
from .trace import Trace
from .uploads import Uploads

_log = logging.getLogger(__name__)
_MOST_STEPS = 1 << 40
MakeMember = Callable[[Command, Callable[[], list[Reached]], Callable[[Order], None]], Member]


class StaleCommand(Exception):
    """The command is for an attempt that is over."""


class BadCommand(Exception):
    """The command can't be carried out; the text says why."""


class Lifecycle:
    """One at a time; all of it runs in the event loop."""

    def __init__(
        self,
        config: SidecarConfig,
        arenas: Arenas,
        ranks: Ranks,
        levels: Mapping[str, Level],
        metrics: Metrics,
        changes: Changes,
        records: RecordFile,
        replicator: Replicator | None = None,
    ) -> None:
        self.config, self.arenas, self.ranks, self.levels = config, arenas, ranks, levels
        self.metrics, self.changes, self._records, self.replicator = metrics, changes, records, replicator
        self.record = Record(config.job_uid)
        self.trace = Trace(config.trace, self._where)
        self.progress = Progress()
        self.launcher = Launcher(ranks, lambda: self.record.attempt, self.processes_changed)
        self.uploads = Uploads(arenas, levels, metrics)
        self.coordinator: Coordinator | None = None
        self.member: Member | None = None
        self.make_member: MakeMember
        self.assume: Callable[[int], None] | None = None  # a spare becomes the pod of an index
        self.interval_changed: Callable[[], None] = lambda: None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last_uploads: dict[str, float] = {}

    def _where(self) -> dict[str, Any]:
        return {"pod": self.config.pod, "index": self.config.index, "attempt": self.record.attempt}

    # --- start

    def resume(self) -> None:
        """Go on where an earlier sidecar of this pod was. Processes that run meanwhile are not touched."""
        fence = self.arenas.adopt()
        self.record = self._records.load(self.config.job_uid)
        if self.record.attempt < fence:
            _log.warning("the record is of attempt %d, the arenas of %d", self.record.attempt, fence)
            self.record = Record(self.config.job_uid, fence, phases.FAILED, error=f"the record of attempt {fence} is lost")
            self.ranks.abandon("the sidecar was restarted and its record is lost")
            return
        self.arenas.fence(self.record.attempt)  # for those that are yet to be made
        self.ranks.load(self.record.ranks)
        self.arenas.set_every(self.record.every)
        command = self.record.prepare
        if self.replicator is not None:
            self.replicator.resume(command)
        if command is None:
            return
        self.record = replace(self.record, committed=self.arenas.committed() or self.record.committed)
        _log.info("goes on with attempt %d, %s", self.record.attempt, self.record.phase)
        if self.record.phase == phases.PREPARING:
            self._begin(command)
            return
        self._open_group(command)
        self._remind(command)

    def _remind(self, command: Command) -> None:
        """What the launcher has to be told, should it not have heard."""
        if self.record.phase == phases.RUNNING:
            self.launcher.launch(self._launch_order(command))
        elif self.record.phase == phases.STOPPING:
            self.launcher.stop(self.record.attempt, 0.0)
        elif self.record.phase == phases.FINISHED:
            self.launcher.finish(self.record.exit_code)

    # --- commands

    async def obey(self, command: Command) -> None:
        """Carry out a command, or begin to. Raises StaleCommand or BadCommand."""
        if command.attempt < self.record.attempt:
            raise StaleCommand
        if command.every is not None and not 0 <= command.every <= _MOST_STEPS:
            raise BadCommand(f"an interval of {command.every} steps is not one")
        if command.kind == "prepare":
            await self._prepare(command)
            return
        act = {
            "launch": self._launch,
            "interval": self._interval,
            "stop": self._stop,
            "persist": self._persist,
            "finish": self._finish,
        }.get(command.kind)
        if act is None:
            raise BadCommand(f"unknown command {command.kind!r}")
        if command.kind != "stop" and (command.attempt > self.record.attempt or self.record.prepare is None):
            raise BadCommand(f"attempt {command.attempt} is not prepared here, this is attempt {self.record.attempt}")
        await act(command)

    async def _prepare(self, command: Command) -> None:
        if command.attempt == self.record.attempt and self.record.prepare is not None:
            return
        self._take_place(command)
        _log.info("prepares attempt %d: %s", command.attempt, command.reason)
        self._cancel_tasks()
        if self.coordinator is not None:
            self._last_uploads = self.coordinator.last_uploads()
            self._tasks["closing"] = asyncio.create_task(self.coordinator.close())
            self.coordinator = None
        self.uploads.cancel_all()
        if self.replicator is not None:
            self.replicator.cancel()
        self.ranks.reset()
        for level in self.levels.values():
            level.forget_void(command.history)
        source = command.source
        kept = Copy(source.step, source.attempt) if source and source.level == MEMORY else None
        every = self.record.every
        self.record = Record(self.config.job_uid, command.attempt, phases.PREPARING, command, kept, every=every)
        self._set_every(command.every)
        self._update()
        self.trace.source("prepare", source, levels=command.levels)
        self._begin(command)

    def _take_place(self, command: Command) -> None:
        """A spare takes the index that it is a member by; anybody else must be the member of its index."""
        mine = next((m for m in command.members if m.pod == self.config.pod), None)
        if self.config.index < 0 and mine is not None and self.assume is not None:
            _log.info("this spare is pod %d from now on", mine.index)
            self.assume(mine.index)
        if not any(m.index == self.config.index for m in command.members):
            raise BadCommand(f"pod {self.config.index} is not a member of attempt {command.attempt}")

    def _begin(self, command: Command) -> None:
        self._open_coordinator(command)
        self._tasks["prepare"] = asyncio.create_task(self._prepare_and_join(command))

    async def _prepare_and_join(self, command: Command) -> None:
        started, self.progress = time.monotonic(), Progress()
        parts = (self.arenas, self.launcher, self.levels, self.metrics, self.replicator)
        try:
            await Preparation(*parts, self.progress).run(command)
        except PrepareFailed as error:
            _log.warning("attempt %d can't start: %s", command.attempt, error)
            self._update(phase=phases.FAILED, error=str(error), error_source=error.source, passing=error.passing)
            self.trace.source("failed", error.source, rank=error.source.rank if error.source else -1, passing=error.passing)
            return
        except Exception as error:  # noqa: BLE001 - a defect of ours must not leave the attempt hanging
            _log.exception("attempt %d can't start", command.attempt)
            self._update(phase=phases.FAILED, error=f"internal error: {error!r}")
            return
        _log.info("attempt %d is prepared after %.2f s", command.attempt, time.monotonic() - started)
        self._update(phase=phases.PREPARED)
        self.trace.source("prepared", command.source)
        self._open_member(command)

    async def _launch(self, command: Command) -> None:
        prepare = self.record.prepare
        if self.record.phase in (phases.RUNNING, phases.STOPPING, phases.EXITED, phases.FINISHED) or prepare is None:
            return
        if self.record.phase != phases.PREPARED:
            raise BadCommand(f"attempt {command.attempt} is {self.record.phase}, not prepared")
        self.ranks.reset()
        self._update(phase=phases.RUNNING)
        self.launcher.launch(self._launch_order(prepare))

    def _launch_order(self, prepare: Command) -> Launch:
        config = self.config
        return Launch(
            attempt=prepare.attempt,
            world_size=config.world_size,
            first_rank=config.first_rank,
            processes=config.processes,
            master_addr=prepare.members[0].host,
            master_port=prepare.master_port,
            node_rank=config.index,
            nodes=len(prepare.members),
            arenas=tuple(self._arena_to_restore(rank) for rank in self.arenas.ranks),
        )

    def _arena_to_restore(self, rank: int) -> str:
        copy = self.record.source_copy
        view = self.arenas.find(rank, copy) if copy else None
        return str(view.file.path) if view else ""

    async def _interval(self, command: Command) -> None:
        if self._set_every(command.every):
            self._update()  # saved before others hear it: after a restart they are told again
        if self.coordinator is not None and command.every:
            await self.coordinator.interval(command.every)

    def _set_every(self, every: int | None) -> bool:
        """Have snapshots taken every so many steps (None: as before); returns whether that is news."""
        if every is None or every == self.record.every:
            return False
        _log.info("a snapshot every %d steps", every)
        self.record = replace(self.record, every=every)
        self.arenas.set_every(every)
        self.interval_changed()
        return True

    async def _stop(self, command: Command) -> None:
        self.launcher.stop(command.attempt, command.grace_seconds)
        if self.record.phase == phases.RUNNING:
            _log.info("stops attempt %d: %s", command.attempt, command.reason)
            self._update(phase=phases.STOPPING)
            self.processes_changed()

    async def _persist(self, command: Command) -> None:
        if self.coordinator is not None:
            await self.coordinator.flush()

    async def _finish(self, command: Command) -> None:
        if self.record.phase != phases.FINISHED and "finish" not in self._tasks:
            self._tasks["finish"] = asyncio.create_task(self._drain_and_finish(command))

    async def _drain_and_finish(self, command: Command) -> None:
        await self.drain()
        _log.info("finished with exit code %d", command.exit_code)
        self._update(phase=phases.FINISHED, exit_code=command.exit_code)
        self.launcher.finish(command.exit_code)

    async def drain(self) -> None:
        """Wait, for a bounded time, until the newest step is where it should be."""
        deadline = time.monotonic() + self.config.drain_seconds
        while not self._is_drained() and time.monotonic() < deadline:  # noqa: ASYNC110 - three sources of change
            await asyncio.sleep(0.05)

    def _is_drained(self) -> bool:
        if self.uploads.busy or (self.coordinator is not None and self.coordinator.busy):
            return False
        newest = self.record.committed
        if newest is None or self.member is None or not self.member.connected:
            return True
        return all(lv.error or (lv.committed and lv.committed.step >= newest.step) for lv in self.levels.values())

    # --- what happens meanwhile

    def processes_changed(self) -> None:
        """The launcher told something new, or is gone."""
        over = (self.record.phase == phases.RUNNING and self.ranks.ended) or (
            self.record.phase == phases.STOPPING and not self.ranks.alive
        )
        self._update(**({"phase": phases.EXITED} if over else {}))
        self._say_again()

    def _say_again(self) -> None:
        """A process may have died between publishing a snapshot and telling us."""
        for rank, copies in self.arenas.lasting().items():
            for copy in copies:
                self.sealed(rank, copy)

    def rank_changed(self, urgent: bool) -> None:
        """A trainer told something new."""
        if urgent:
            self._update()
        else:
            self.changes.touch(urgent=False)

    def sealed(self, rank: int, copy: Copy) -> None:
        """A trainer published a snapshot."""
        self.trace.sealed(rank, copy)
        if self.member is not None:
            self.member.report(Reached(self.record.attempt, MEMORY, rank, copy))

    def skipped(self, rank: int, step: int) -> None:
        """A trainer found no slot for a step."""
        if self.member is not None:
            copy = Copy(step, self.record.attempt)
            self.member.report(Reached(self.record.attempt, MEMORY, rank, copy, error="no free slot"))

    def ordered(self, order: Order) -> None:
        """The coordinator's word. Runs before the next order is read: see `uploads`."""
        if order.attempt != self.record.attempt:
            return
        self.trace.order("obeyed", order)
        if order.level == PEERS:
            if self.replicator is not None and self.member is not None:
                self.replicator.obey(order, self.trace.reporting(self.member.report))
                self.trace.kept(self.replicator.kept.protected, self.replicator.kept.pending)
        elif order.kind == "persist" and self.member is not None:
            self.uploads.start(order.attempt, order.level, order.copy, self.member.report)
        elif order.kind == "committed" and order.level == MEMORY:
            self.arenas.commit(order.copy.step)
            self.record = replace(self.record, committed=order.copy)
            self.changes.touch(urgent=False)
        elif order.kind == "resync":
            _log.info("ranks hold different steps: nothing below step %d is sealed, to meet there", order.copy.step)
            self.arenas.resync(order.copy.step)
        elif order.kind == "interval" and 0 < order.every <= _MOST_STEPS:
            if self._set_every(order.every):
                self._update()
        elif order.kind == "committed" and order.level in self.levels and self.coordinator is None:
            self.levels[order.level].set_committed(order.copy)

    def _everything(self) -> list[Reached]:
        """What the coordinator has to know about this pod; newest first, so that no older step goes to a store on the way."""
        sealed = self.arenas.lasting().items()
        pairs = sorted(((c, r) for r, copies in sealed for c in copies), reverse=True)
        reached = [Reached(self.record.attempt, MEMORY, rank, copy) for copy, rank in pairs]
        held = self.replicator.everything(self.record.attempt) if self.replicator else []
        told = Reached(self.record.attempt, TOLD, self.config.first_rank, Copy(-1, self.record.attempt))
        return [*reached, *self.uploads.results, *held, told]

    # --- the group

    def _open_group(self, command: Command) -> None:
        self._open_coordinator(command)
        if self.record.phase != phases.FAILED:
            self._open_member(command)

    def _open_coordinator(self, command: Command) -> None:
        if command.members[0].index == self.config.index:
            peers = self.config.peers if self.replicator else None
            self.coordinator = Coordinator(command, self.config.job_uid, self.config.slots, self.levels, self.metrics, peers)
            self.coordinator.decisions.every = self.record.every
            self.coordinator.trace = self.trace
            self.coordinator.start(self._last_uploads)

    def _open_member(self, command: Command) -> None:
        self.member = self.make_member(command, self._everything, self.ordered)
        self._tasks["member"] = asyncio.create_task(self.member.run())

    def _cancel_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self.member = None

    async def close(self) -> None:
        """Leave the group; processes and arenas stay."""
        self._cancel_tasks()
        self.uploads.cancel_all()
        if self.replicator is not None:
            self.replicator.cancel()
        if self.coordinator is not None:
            await self.coordinator.close()

    def _update(self, **changes: Any) -> None:
        self.record = replace(self.record, ranks=self.ranks.states(), **changes)
        self._records.save(self.record)
        self.changes.touch()

    async def prefault(self) -> bool:
        """Create the arenas of the configured size; False if they do not fit (told in the state)."""
        try:
            await asyncio.to_thread(self.arenas.prefault)
        except (ArenaError, OSError) as error:
            _log.error("no arena: %s", error)
            self.changes.touch()
            return False
        return True
