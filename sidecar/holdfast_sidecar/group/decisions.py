"""What the coordinator decides, without any I/O: when a step is committed, when a store gets one, what came of it.

Time is an argument (monotonic seconds). Each call returns the actions that follow from it; `coordinator` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from holdfast_core.config import PeersConfig, StoreConfig
from holdfast_core.durable import Shard
from holdfast_core.messages import MEMORY, PEERS, TOLD, Member, Order, Reached
from holdfast_core.timeline import Copy, History, is_valid

from .protect import Protect
from .resync import Resync

ABSENT_SECONDS = 10.0  # a member that is away for this long fails the uploads that wait for it
_UPLOAD_SECONDS = 3600.0
_BACKOFF_SECONDS = 8.0
_FLUSH_WINDOW = 2.0  # seconds; steps that are committed this shortly after a flush belong to it
_PENDING_STEPS = 64  # copies that are remembered before all ranks have sealed them


@dataclass(frozen=True)
class Commit:
    """All shards of a step are in a store: write its manifest."""

    store: str
    copy: Copy
    shards: tuple[Shard, ...]
    seconds: float


Action = Order | Commit


@dataclass(frozen=True)
class Upload:
    """A step on its way to a store."""

    copy: Copy
    started: float
    shards: dict[int, Shard] = field(default_factory=dict)
    committing: bool = False


@dataclass
class StoreLine:
    """One store's schedule."""

    config: StoreConfig
    known: bool = False
    committed: Copy | None = None
    upload: Upload | None = None
    started: float = -math.inf
    failures: int = 0
    retry_at: float = -math.inf
    flush_until: float = -math.inf
    flush_step: int = -1

    def wants(self, copy: Copy, now: float) -> bool:
        """Whether this step should go there now."""
        if not self.known or self.upload or now < self.retry_at or not self._newer(copy):
            return False
        if self.failures or self.flushes(now):
            return True
        return self._due_by_time(now) or self._due_by_steps(copy)

    def flushes(self, now: float) -> bool:
        """Whether the newest step is wanted, whatever the schedule says."""
        return now < self.flush_until or self._behind_flush()

    def _newer(self, copy: Copy) -> bool:
        return self.committed is None or copy.step > self.committed.step

    def _behind_flush(self) -> bool:
        return self.flush_step > (self.committed.step if self.committed else -1)

    def _due_by_time(self, now: float) -> bool:
        return self.config.every_seconds is not None and now - self.started >= self.config.every_seconds

    def _due_by_steps(self, copy: Copy) -> bool:
        last = self.committed.step if self.committed else -1
        return self.config.every_steps is not None and copy.step - last >= self.config.every_steps


class Decisions:
    """The coordinator's state in one attempt."""

    def __init__(
        self,
        attempt: int,
        members: Sequence[Member],
        history: History,
        slots: int,
        stores: Iterable[StoreConfig],
        peers: PeersConfig | None = None,
        pace: float = 0.0,
    ) -> None:
        self.attempt, self.history = attempt, history
        self.committed: Copy | None = None
        self.every = 0
        self.lines = {config.name: StoreLine(config) for config in stores}
        self._ranks = {m.index: frozenset(range(m.first_rank, m.first_rank + m.processes)) for m in members}
        self._world = frozenset().union(*self._ranks.values())
        self._leasable = max(1, slots - 2)  # the writer needs two more: the committed step, and one to write
        self._sealed: dict[Copy, set[int]] = {}
        self._absent: dict[int, float] = dict.fromkeys(self._ranks, 0.0)
        self._resync = Resync(self._world)
        self.protect = Protect(attempt, members, history, peers or PeersConfig(parity=0), pace)

    # --- members come and go

    def joined(self, index: int) -> list[Order]:
        """What a member that (re)connects has to know."""
        self._absent.pop(index, None)
        orders = [Order("committed", self.attempt, MEMORY, self.committed)] if self.committed else []
        if self._resync.floor is not None:
            orders.append(self._meet_at(self._resync.floor))
        if self.every:
            orders.append(self.interval(self.every))
        for name, line in self.lines.items():
            if line.committed:
                orders.append(Order("committed", self.attempt, name, line.committed))
            if line.upload and self._ranks[index] - line.upload.shards.keys():
                orders.append(Order("persist", self.attempt, name, line.upload.copy))
        return [*orders, *self.protect.joined(index)]

    def interval(self, every: int) -> Order:
        """From now on a snapshot is taken every so many steps; who is away hears it when it is back."""
        self.every = every
        return Order("interval", self.attempt, MEMORY, Copy(-1, self.attempt), every)

    def left(self, index: int, now: float) -> None:
        """A member's connection is gone."""
        self._absent[index] = now
        self.protect.left(index)

    def knows(self, index: int) -> bool:
        """Whether this pod belongs to the attempt."""
        return index in self._ranks

    # --- what they report

    def reached(self, index: int, message: Reached, now: float) -> list[Action]:
        """A rank sealed or uploaded a step, or failed to. Anything that is not of this attempt and pod is ignored."""
        if message.attempt != self.attempt or message.rank not in self._ranks.get(index, ()):
            return []
        if message.level == MEMORY and message.error:
            self._resync.skipped(message.rank, message.copy.step, now)
            return []
        if message.level == MEMORY:
            return self._sealed_by(message.rank, message.copy, now)
        if message.level in (PEERS, TOLD):
            return self._protected(index, message, now)
        line = self.lines.get(message.level)
        if line is None or line.upload is None or line.upload.copy != message.copy or line.upload.committing:
            return []
        if message.error or message.shard is None or message.shard.rank != message.rank:
            self.failed(message.level, now)
            return []
        return self._uploaded(message.level, line, line.upload, message.shard, now)

    def _protected(self, index: int, message: Reached, now: float) -> list[Action]:
        if message.level == TOLD:
            self.protect.told(index)
        elif message.error:
            return [*self.protect.failed(message, now)]
        else:
            self.protect.holds(index, message)
        return [*self.protect.advance(self.committed, now)]

    def _sealed_by(self, rank: int, copy: Copy, now: float) -> list[Action]:
        if not is_valid(copy, self.history) or (self.committed and copy.step <= self.committed.step):
            return []
        self._resync.sealed(rank, copy.step)
        if self._resync.floor is not None and copy.step < self._resync.floor:
            return []
        self._sealed.setdefault(copy, set()).add(rank)
        if self._sealed[copy] != self._world:
            self._forget_oldest()
            return []
        self.committed = copy
        self._resync.committed()
        self._sealed = {c: r for c, r in self._sealed.items() if c.step > copy.step}
        for line in self.lines.values():
            if now < line.flush_until:
                line.flush_step = copy.step
        return [Order("committed", self.attempt, MEMORY, copy), *self.protect.advance(copy, now)]

    def _forget_oldest(self) -> None:
        if len(self._sealed) > _PENDING_STEPS:
            del self._sealed[min(self._sealed)]

    def _uploaded(self, name: str, line: StoreLine, upload: Upload, shard: Shard, now: float) -> list[Action]:
        shards = {**upload.shards, shard.rank: shard}
        whole = shards.keys() == self._world
        line.upload = replace(upload, shards=shards, committing=whole)
        if not whole:
            return []
        return [Commit(name, upload.copy, tuple(s for _, s in sorted(shards.items())), now - upload.started)]

    # --- stores

    def found(self, name: str, committed: Copy | None) -> None:
        """The newest step that the store already holds."""
        line = self.lines[name]
        line.known = True
        line.committed = max(filter(None, (line.committed, committed)), default=None)

    def stored(self, name: str, copy: Copy) -> Order:
        """The manifest is written."""
        line = self.lines[name]
        line.committed, line.upload, line.failures, line.retry_at = copy, None, 0, -math.inf
        return Order("committed", self.attempt, name, copy)

    def failed(self, name: str, now: float) -> None:
        """An upload or commit did not work: again after a pause that grows, with what is the newest step then."""
        line = self.lines[name]
        line.upload = None
        line.retry_at = now + min(2.0**line.failures, _BACKOFF_SECONDS)
        line.failures += 1

    def flush(self, now: float) -> None:
        """Bring the newest step to every store, whatever the schedule says."""
        for line in self.lines.values():
            line.flush_until = now + _FLUSH_WINDOW
            line.flush_step = max(line.flush_step, self.committed.step if self.committed else -1)

    def tick(self, now: float, healthy: Iterable[str]) -> list[Order]:
        """Give up uploads that wait in vain, and start those that are due."""
        for name, line in self.lines.items():
            if line.upload and not line.upload.committing and self._waits_in_vain(line.upload, now):
                self.failed(name, now)
        usable = set(healthy)
        started = (self._start(name, line, now) for name, line in self.lines.items() if name in usable)
        return [*self._meet(now), *(order for order in started if order), *self.protect.advance(self.committed, now)]

    def _meet(self, now: float) -> list[Order]:
        """If ranks hold steps that the others lack: where to meet. What they hold below that is never committed."""
        step = self._resync.meet(now) if self._sealed else None  # without a step that only some have, they merely lack slots
        if step is None:
            return []
        self._sealed = {c: r for c, r in self._sealed.items() if c.step >= step}
        return [self._meet_at(step)]

    def _meet_at(self, step: int) -> Order:
        return Order("resync", self.attempt, MEMORY, Copy(step, self.attempt))

    def _waits_in_vain(self, upload: Upload, now: float) -> bool:
        away = {i for i, since in self._absent.items() if now - max(since, upload.started) > ABSENT_SECONDS}
        missing = any(self._ranks[i] - upload.shards.keys() for i in away)
        return missing or now - upload.started > _UPLOAD_SECONDS

    def _start(self, name: str, line: StoreLine, now: float) -> Order | None:
        copy = self._candidate(line, now)
        if copy is None or not line.wants(copy, now):
            return None
        line.upload, line.started = Upload(copy, now), now
        return Order("persist", self.attempt, name, copy)

    def _candidate(self, line: StoreLine, now: float) -> Copy | None:
        """The newest committed step; or, if holding its slot would leave the writer none, one that is held anyway."""
        leased = {other.upload.copy for other in self.lines.values() if other.upload}
        if not line.flushes(now):
            leased |= self.protect.kept
        if self.committed is None or self.committed in leased or len(leased) < self._leasable:
            return self.committed
        return max((c for c in leased if not line.committed or c.step > line.committed.step), default=None)
