"""The coordinator's side of the group: connections, stores, and the carrying out of what `decisions` decides."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence

from aiohttp import WSMsgType, web
from holdfast_core import wire
from holdfast_core.config import PeersConfig
from holdfast_core.durable import StepManifest
from holdfast_core.manifest import CorruptShard
from holdfast_core.messages import MEMORY, PEERS, Command, Order, Reached
from holdfast_core.timeline import Resume

from ..metrics import Metrics
from ..stores.base import StoreError
from ..stores.level import Level
from ..trace import Trace
from ..uploads import IN_MEMORY
from .decisions import Action, Commit, Decisions
from .protect import PACE_SECONDS

_TICK = 0.2  # seconds
_COMMIT_LIMIT = 60.0
_SEND_LIMIT = 5.0
_log = logging.getLogger(__name__)


class Coordinator:
    """Lives for one attempt, in the sidecar of the first member. `close` is final."""

    def __init__(
        self,
        prepare: Command,
        job_uid: str,
        slots: int,
        levels: Mapping[str, Level],
        metrics: Metrics,
        peers: PeersConfig | None = None,
    ) -> None:
        self.attempt = prepare.attempt
        self._job_uid, self._levels, self._metrics = job_uid, levels, metrics
        self._resume = Resume(prepare.attempt, prepare.source.step if prepare.source else -1)
        self._index = prepare.members[0].index
        self._world_size = sum(m.processes for m in prepare.members)
        configs = [level.config for level in levels.values()]
        self.decisions = Decisions(prepare.attempt, prepare.members, prepare.history, slots, configs, peers, PACE_SECONDS)
        self._connections: dict[int, web.WebSocketResponse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking_up: set[str] = set()
        self._closed = False
        self.trace: Trace | None = None

    def start(self, last_uploads: Mapping[str, float]) -> None:
        """Begin to schedule. `last_uploads` says when an earlier attempt last sent a step to each store."""
        for name, line in self.decisions.lines.items():
            line.started = last_uploads.get(name, line.started)
        self._spawn(self._run())

    def last_uploads(self) -> dict[str, float]:
        """When each store last got a step; what failed since then is due at once."""
        return {n: line.started for n, line in self.decisions.lines.items() if not line.failures and not line.upload}

    @property
    def busy(self) -> bool:
        """Whether a step is on its way to a store."""
        return any(line.upload for line in self.decisions.lines.values())

    async def close(self) -> None:
        """End all connections and tasks."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        closing = [asyncio.ensure_future(ws.close()) for ws in self._connections.values()]
        if closing:
            await asyncio.wait(closing, timeout=_SEND_LIMIT)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            for name, level in self._levels.items():
                known = self.decisions.lines[name].known or name in self._looking_up
                if level.reachable and not known:
                    self._looking_up.add(name)
                    self._spawn(self._look_up(name, level))
            await self.tick()
            await asyncio.sleep(_TICK)

    async def _look_up(self, name: str, level: Level) -> None:
        """In a task of its own: a store that hangs must not hold up the others."""
        await level.refresh(self.decisions.history)
        self._looking_up.discard(name)
        if level.known:
            self.decisions.found(name, level.committed)
            if level.committed:
                await self._broadcast(Order("committed", self.attempt, name, level.committed))

    async def tick(self) -> None:
        """Start uploads that are due."""
        healthy = [name for name, level in self._levels.items() if level.reachable]
        await self._do(self.decisions.tick(time.monotonic(), healthy))

    async def flush(self) -> None:
        """Bring the newest step to every store now."""
        self.decisions.flush(time.monotonic())
        await self.tick()

    async def interval(self, every: int) -> None:
        """Tell all members how often snapshots are taken: ranks that disagree for long would commit nothing."""
        await self._broadcast(self.decisions.interval(every))

    # --- members

    async def serve(self, index: int, connection: web.WebSocketResponse) -> None:
        """A member's connection, until it ends."""
        old = self._connections.pop(index, None)
        if old is not None:
            await old.close()
        self._connections[index] = connection
        try:
            await self._say([connection], self.decisions.joined(index))
            await self._listen(index, connection)
        finally:
            if self._connections.get(index) is connection:
                del self._connections[index]
                self.decisions.left(index, time.monotonic())

    async def _listen(self, index: int, connection: web.WebSocketResponse) -> None:
        async for message in connection:
            if message.type is not WSMsgType.TEXT or self._closed:
                break
            try:
                reached = wire.loads(Reached, message.data)
            except wire.WireError as error:
                _log.warning("member %d sent nonsense: %s", index, error)
                break
            if reached.error and reached.level not in (MEMORY, PEERS):
                self._note(index, reached)
            actions = self.decisions.reached(index, reached, time.monotonic())
            if actions:
                await self._do(actions)
                if any(action.level != PEERS for action in actions if isinstance(action, Order)):
                    await self.tick()  # a store may be due

    def _note(self, index: int, reached: Reached) -> None:
        _log.warning("step %d did not reach %s: %s", reached.copy.step, reached.level, reached.error)
        level = self._levels.get(reached.level)
        if level is not None and index != self._index and not reached.error.startswith(IN_MEMORY):
            level.failed_elsewhere(reached.error)

    async def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Commit):
                self._spawn(self._commit(action))
        await self._say(self._connections.values(), [a for a in actions if isinstance(a, Order)])

    async def _broadcast(self, order: Order) -> None:
        await self._say(self._connections.values(), [order])

    async def _say(self, connections: Iterable[web.WebSocketResponse], orders: Sequence[Order]) -> None:
        """All sends begin in this very moment, so that each member hears orders in the sequence in which they were decided."""
        targets = list(connections)
        for order in orders if self.trace else ():
            assert self.trace is not None
            self.trace.order("decided", order)
        await asyncio.gather(*(asyncio.create_task(self._send(c, order)) for order in orders for c in targets))

    async def _send(self, connection: web.WebSocketResponse, order: Order) -> None:
        """One member that does not read must not hold up the others: it is cut off, and comes back."""
        try:
            async with asyncio.timeout(_SEND_LIMIT):
                await connection.send_str(wire.dumps(order).decode())
        except (ConnectionError, RuntimeError, TimeoutError):
            self._spawn(_close(connection))

    # --- commits

    async def _commit(self, commit: Commit) -> None:
        level, copy = self._levels[commit.store], commit.copy
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = StepManifest(self._job_uid, copy.step, copy.attempt, self._world_size, created, commit.shards)
        history = self.decisions.history
        try:
            await level.call(
                lambda steps, _: steps.commit(manifest, self._resume, history, lambda: not self._closed), _COMMIT_LIMIT
            )
        except (StoreError, CorruptShard) as error:
            level.upload_failed(error)
            self.decisions.failed(commit.store, time.monotonic())
            return
        self._metrics.observe(self._metrics.commit, commit.seconds, commit.store)
        level.set_committed(copy, commit.seconds)
        _log.info("step %d is committed in %s after %.2f s", copy.step, commit.store, commit.seconds)
        await self._broadcast(self.decisions.stored(commit.store, copy))
        await self._tidy(level, commit)

    async def _tidy(self, level: Level, commit: Commit) -> None:
        keep, history = level.config.keep, self.decisions.history
        try:
            await level.call(lambda steps, _: steps.tidy(commit.copy, history, keep, self.attempt), _COMMIT_LIMIT)
        except StoreError as error:
            _log.warning("could not delete old steps in %s: %s", commit.store, error)


async def _close(connection: web.WebSocketResponse) -> None:
    await connection.close()
