"""This pod's part in bringing steps to peers' RAM: carries out the coordinator's orders, and answers with `Reached`.

What is kept is decided in `group.keeping`; bytes are moved by `peers`. The arenas' words are written before anything is given
up, so that a crash at any point leaves more behind than is needed, never less.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from holdfast_core.arena import NO_STEP, ArenaError
from holdfast_core.config import SidecarConfig
from holdfast_core.messages import PEERS, Command, Member, Order, Parity, Reached, Replication
from holdfast_core.protection import groups_of, rank_groups, watched
from holdfast_core.timeline import Copy

from .arenas import Arenas
from .group.keeping import Kept, ordered, prepared
from .metrics import Metrics
from .peers import Heard, PeerError, PeerPlace, Peers

_log = logging.getLogger(__name__)
Report = Callable[[Reached], None]


class Replicator:
    """One at a time; all of it runs in the event loop, the work in threads of `peers`."""

    def __init__(
        self, config: SidecarConfig, arenas: Arenas, peers: Peers, metrics: Metrics, changed: Callable[[], None]
    ) -> None:
        self.config, self._arenas, self.peers = config, arenas, peers
        self._metrics, self._changed = metrics, changed
        self.kept = Kept()
        self.last: Replication | None = None  # that came to an end, or failed
        self._now = Replication(Copy(-1, 0))
        self._open = 0  # ranks that have yet to answer the order
        self.without: tuple[int, ...] = ()
        self._members: tuple[Member, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self._started = 0.0
        self._order: Order | None = None  # to replicate, that is being carried out

    # --- an attempt begins, or goes on after a restart of this sidecar

    def resume(self, command: Command | None) -> None:
        """Take over what an earlier sidecar of this pod kept."""
        steps = self._arenas.kept()
        by_step = {c.step: c for copies in self._arenas.sealed().values() for c in copies}
        self.kept = Kept(by_step.get(steps[0]), by_step.get(steps[1]))
        if command is not None:
            self._members = command.members
            self._watch(command)

    def prepare(self, command: Command) -> None:
        """A new attempt: what is under way is over; what the attempt resumes from is kept."""
        self.cancel()
        self._members, self.last = command.members, None
        self._keep(prepared(self.kept, command.source, command.history))
        self._watch(command)

    def _watch(self, command: Command) -> None:
        groups = groups_of(command.members, self.config.peers)
        self.peers.watch([place(m) for m in watched(self.config.index, command.members, groups)])

    def _keep(self, kept: Kept) -> None:
        self.kept = kept
        self._arenas.keep(*(c.step if c else NO_STEP for c in (kept.protected, kept.pending)))
        self.peers.parity.keep(kept.copies)
        for rank, copies in self._held().items():
            for copy in copies - kept.copies:  # of no use: the snapshots that it goes with are not kept
                self.peers.parity.drop(rank, copy)

    def _held(self) -> dict[int, set[Copy]]:
        return {rank: {p.copy for p in found} for rank, found in self.peers.parity.whole().items()}

    def _whole(self) -> frozenset[Copy]:
        """Copies of which this pod holds whole parity for all its ranks."""
        held = self._held()
        return frozenset.intersection(*(frozenset(held.get(rank, ())) for rank in self._arenas.ranks))

    # --- orders

    def obey(self, order: Order, report: Report) -> None:
        """Of level `peers`, of the present attempt."""
        if order.kind == "committed":
            self.without = tuple(m.index for m in self._members if not any(m.index in g.members for g in order.groups))
        if order == self._order and any(not t.done() for t in self._tasks):
            return  # said again after a reconnect
        if order.kind in ("replicate", "release"):
            self.cancel()
        self._keep(ordered(self.kept, order, self.config.index, self._whole()))
        if order.kind == "replicate":
            self._replicate(order, report)
        elif order.kind == "release" and order.reason:
            self.last = Replication(order.copy, time.monotonic() - self._started, error=order.reason)
        elif order.kind == "committed":
            self._drop_other_groups(order)
        self._changed()

    def _drop_other_groups(self, order: Order) -> None:
        """A step that was protected anew in other groups is not needed twice."""
        for rank, codeword in rank_groups(order.groups, self._members).items():
            kind = Parity(order.copy, *codeword)
            if rank in self._arenas.ranks and self.peers.parity.holds(rank, kind):
                self.peers.parity.drop(rank, order.copy, but=kind)

    def _replicate(self, order: Order, report: Report) -> None:
        codewords = rank_groups(order.groups, self._members)
        self._now, self._started, self._order = Replication(order.copy), time.monotonic(), order
        self._tasks = [
            asyncio.create_task(self._encode(rank, order, *codewords[rank], report))
            for rank in self._arenas.ranks
            if rank in codewords
        ]
        self._open = len(self._tasks)
        self._told()

    async def _encode(self, rank: int, order: Order, group: tuple[int, ...], parity: int, report: Report) -> None:
        received, error, blame = 0, "", -1
        try:
            places = [place(m) for m in self._members]
            received = await self.peers.encode(rank, order.copy, group, parity, places, self.kept.protected)
        except PeerError as problem:
            error, blame = f"rank {rank}: {problem}", problem.index
        except (ArenaError, OSError) as problem:
            error, blame = f"rank {rank} of pod {self.config.pod}: {problem}", self.config.index
        except Exception as problem:  # noqa: BLE001 - a defect of ours must not leave the round waiting
            _log.exception("parity of step %d", order.copy.step)
            error, blame = f"rank {rank} of pod {self.config.pod}: internal error: {problem!r}", self.config.index
        self._note(order, received, error)
        report(
            Reached(
                order.attempt, PEERS, rank, order.copy, error=error, group=group, parity=parity, round=order.round, blame=blame
            )
        )

    def _note(self, order: Order, received: int, error: str) -> None:
        before = self._now if self._now.copy == order.copy else Replication(order.copy)
        if error and not before.error:
            _log.warning("no parity of step %d: %s", order.copy.step, error)
        seconds = time.monotonic() - self._started
        self._now = Replication(order.copy, seconds, before.received + received, error or before.error)
        self._open -= 1
        self._told()
        self._metrics.replicated(seconds, received, failed=bool(error))
        self._changed()

    def _told(self) -> None:
        """Why a round failed is told until one has worked, not only until the next one begins."""
        if self._now.error or self._open <= 0:
            self.last = self._now

    def everything(self, attempt: int) -> list[Reached]:
        """What a coordinator that (re)appears has to know: which parity is whole here."""
        found = ((rank, p) for rank, held in self.peers.parity.whole().items() for p in held)
        return [Reached(attempt, PEERS, rank, p.copy, group=p.group, parity=p.parity) for rank, p in found]

    def awaits(self, newest: Copy | None) -> bool:
        """Whether peers who count on this pod have yet to be told that they hold this step."""
        if newest is None or not self.config.peers.parity or len(self._members) < 2 or self.config.index in self.without:
            return False
        return self.kept.protected is None or self.kept.protected.step < newest.step

    def cancel(self) -> None:
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()
        self._tasks, self._order = [], None

    async def rebuild(self, rank: int, copy: Copy, attempt: int, heard: Heard) -> int:
        """Bring a lost rank's snapshot into a slot here; bytes, and `heard` of them meanwhile. Raises PeerError, ArenaError or
        CorruptShard."""
        return await self.peers.rebuild(rank, copy, [place(m) for m in self._members], attempt, heard)


def place(member: Member) -> PeerPlace:
    """Where a member's bytes are served."""
    return PeerPlace(member.index, member.pod, member.host, member.peer_port, member.first_rank, member.processes)
