"""Snapshots in a local directory, for a script that runs without a sidecar: one arena file per rank, the same format.

    rank-00000.g0.arena     a later generation replaces it when a snapshot outgrows its slots
    rank-00000.lock         held while the process lives

All ranks tell each other at the start which steps they have (`exchange`), and resume from the newest one that all have and have
verified. After that no rank talks to another: a slot is reused when the ranks' files show a newer step sealed by everybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from holdfast_core import arena
from holdfast_core.arena import NO_STEP, ArenaError, ArenaHeader, Slot, SlotState
from holdfast_core.manifest import CorruptShard
from holdfast_core.timeline import Copy

from .._capture.report import SealStats
from .._capture.slot import Identity, Written
from .._log import note
from .._state import load
from .._state.mapping import Mapped, create_arena, open_arena
from ..errors import DirectoryInUse, SnapshotSkipped
from .base import Located
from .exchange import exchange

_SLOTS = 3
_LOCK_SECONDS = 10.0
_UID = "local"
_NAME = re.compile(r"^rank-(\d{5,})\.g(\d+)\.arena$")


@dataclass(frozen=True)
class _Vote:
    """What a rank brings to a round: the newest attempt that it has seen, its copies, and the one that it has verified."""

    fence: int
    copies: tuple[Copy, ...]
    verified: Copy | None = None


class DirectoryHome:
    """See `base.Home`."""

    def __init__(self, path: Path, *, rank: int, world_size: int) -> None:
        self.path = path
        self.identity = Identity(rank, world_size, 1)
        self._arenas: list[Mapped] = []
        self._peers: dict[int, list[Mapped]] = {}
        self._lock: IO[bytes] | None = None
        self._candidates: dict[Copy, Located] = {}

    def locate(self) -> Located | None:
        """Agree with the other ranks; raises DirectoryInUse if somebody else writes here."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._arenas = self._open_own()
        held = self._candidates = self._held()
        attempt, chosen = self._agree(held)
        self._begin_attempt(attempt, chosen)
        if chosen is None:
            return None
        if self.identity.rank == 0:
            note(f"resuming after step {chosen.step} from {self.path}")
        return held[chosen]

    def _agree(self, held: dict[Copy, Located]) -> tuple[int, Copy | None]:
        """The next attempt, and the newest step that every rank has and has verified. Only what may be chosen is read.

        A rank that is alone finds out while it loads.
        """
        fence = max((arena.fence(a.buf) for a in self._arenas), default=0)
        verified: Copy | None = None
        for number in itertools.count():
            vote = _Vote(fence, tuple(sorted(held)), verified)
            votes = exchange(self.path, self.identity, number, vote, _Vote)
            chosen = max(set(votes[0].copies).intersection(*(v.copies for v in votes)), default=None)
            if chosen is None or len(votes) == 1 or all(v.verified == chosen for v in votes):
                return 1 + max(v.fence for v in votes), chosen
            if verified != chosen:
                verified = chosen if self._verified(held[chosen]) else None
            if verified is None:
                del held[chosen]
        raise AssertionError("itertools.count() ends")

    def _take_lock(self) -> None:
        self._lock = open(self.path / f"rank-{self.identity.rank:05d}.lock", "ab")  # noqa: SIM115 - held for life
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise DirectoryInUse(
                        f"another process writes snapshots of rank {self.identity.rank} into {self.path}: stop it, or "
                        "set HOLDFAST_DIR to another directory"
                    ) from error
                time.sleep(0.05)
            else:
                return

    def _open_own(self) -> list[Mapped]:
        """This rank's readable arenas, oldest generation first. A damaged one is left out, and replaced in time."""
        opened = []
        for path in self._files(self.identity.rank):
            try:
                opened.append(open_arena(path))
            except (ArenaError, OSError) as error:
                note(f"ignoring {path}: {error}")
        for mapped in opened:
            world = mapped.header.world_size
            if world != self.identity.world_size:
                raise DirectoryInUse(
                    f"{self.path} holds snapshots of {world} ranks, this run has {self.identity.world_size}: run with "
                    f"{world}, or set HOLDFAST_DIR to another directory"
                )
        return opened

    def _files(self, rank: int) -> list[Path]:
        found = [(m, p) for p in self.path.iterdir() if (m := _NAME.match(p.name)) and int(m[1]) == rank]
        return [p for m, p in sorted(found, key=lambda item: int(item[0][2]))]

    def _held(self) -> dict[Copy, Located]:
        return {
            Copy(slot.step, slot.attempt): Located(mapped, slot)
            for mapped in self._arenas
            for slot in mapped.slots()
            if slot.state is SlotState.SEALED
        }

    def _verified(self, located: Located) -> bool:
        """Whether its bytes agree with their checksums. A slot that lies is given up."""
        mapped, slot = located.source, located.slot
        try:
            load.verify(mapped, slot, rank=self.identity.rank, world_size=self.identity.world_size)
        except (CorruptShard, ArenaError) as error:
            note(f"step {slot.step} in {mapped.path.name} cannot be used, trying an older one: {error}")
            arena.clear(mapped.buf, slot.index)
            return False
        return True

    def _begin_attempt(self, attempt: int, chosen: Copy | None) -> None:
        """Fence, and give up the steps of the abandoned timeline."""
        self.identity = replace(self.identity, attempt=attempt)
        step = chosen.step if chosen else NO_STEP
        for mapped in self._arenas:
            arena.set_fence(mapped.buf, attempt)
            arena.set_committed(mapped.buf, step)
            for slot in mapped.slots():
                if slot.state is SlotState.SEALED and slot.step > step:
                    arena.clear(mapped.buf, slot.index)

    def restored(self, step: int, seconds: float) -> None:
        """Nobody to tell."""

    def refuse(self, step: int, problem: str) -> Located:
        """Alone, the next older one. With other ranks it was verified a moment ago: memory that lies is no base."""
        refused = [copy for copy in self._candidates if copy.step >= step]
        for copy in refused:
            located = self._candidates.pop(copy)
            arena.clear(located.source.buf, located.slot.index)
        if self.identity.world_size > 1 or not self._candidates:
            raise CorruptShard(f"step {step} in {self.path} is corrupt, and half of it is loaded: {problem}; start again")
        chosen = max(self._candidates)
        note(f"step {step} in {self.path} cannot be used, trying an older one: {problem}")
        self._begin_attempt(self.identity.attempt, chosen)
        return self._candidates[chosen]

    def target(self, slot_bytes: int) -> Mapped:
        """The newest generation, or a new one that is large enough; a full disk raises SnapshotSkipped."""
        if not self._arenas or self._arenas[-1].header.slot_bytes < slot_bytes:
            self._grow(slot_bytes)
        self._commit()
        return self._arenas[-1]

    def _grow(self, slot_bytes: int) -> None:
        who = self.identity
        generation = 1 + max((int(m[2]) for p in self._files(who.rank) if (m := _NAME.match(p.name))), default=-1)
        header = ArenaHeader(_UID, who.rank, who.world_size, _SLOTS, slot_bytes, generation)
        path = self.path / arena.file_name(who.rank, generation)
        try:
            self._arenas.append(create_arena(path, header, who.attempt))
        except OSError as error:
            need = header.total_bytes
            raise SnapshotSkipped(f"{path} needs {need} bytes: {error.strerror}; free some space") from error

    def _commit(self) -> None:
        """Find the newest step that every rank has sealed, so that older slots may be reused."""
        common = set(self._sealed_copies(self._arenas))
        for rank in range(self.identity.world_size):
            if rank != self.identity.rank and common:
                common &= self._sealed_copies(self._peer(rank))
        if not common:
            return
        newest = max(c.step for c in common)
        for mapped in self._arenas:
            arena.set_committed(mapped.buf, newest)
        self._drop_outgrown(newest)

    @staticmethod
    def _sealed_copies(arenas: list[Mapped]) -> set[Copy]:
        return {Copy(s.step, s.attempt) for a in arenas for s in a.slots() if s.state is SlotState.SEALED}

    def _peer(self, rank: int) -> list[Mapped]:
        """Another rank's arenas; looked up again until it has one, and when it has outgrown it."""
        known = self._peers.get(rank, [])
        files = self._files(rank)
        if [m.path for m in known] != files:
            known = []
            for path in files:
                with contextlib.suppress(ArenaError, OSError):
                    known.append(open_arena(path))
            self._peers[rank] = known
        return known

    def _drop_outgrown(self, committed: int) -> None:
        """Generations older than the one that holds the committed step are not needed any more."""
        while len(self._arenas) > 1 and any(_is(s, committed) for a in self._arenas[1:] for s in a.slots()):
            with contextlib.suppress(OSError):
                os.unlink(self._arenas[0].path)
            del self._arenas[0]

    def sealed(self, target: Mapped, written: Written, step: int, stats: SealStats) -> None:
        """Nobody to tell: the other ranks read it from the file."""

    def skipped(self, step: int, reason: str) -> None:
        """Nobody to tell: the Checkpointer warns."""

    def progress(self, step: int, loss: float | None) -> None:
        """Nobody to tell."""

    def close(self) -> None:
        """Let the next run in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is(slot: Slot, step: int) -> bool:
    return slot.state is SlotState.SEALED and slot.step == step
