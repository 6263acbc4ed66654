"""The pod's arenas: files of shared memory, created, faulted in, grown, scanned and verified here.

`holdfast_core.arena` defines the bytes. The trainer maps the same files and writes snapshots; a file may be cut short or
hold flipped bits at any time, so each look at one starts with its size (touching a page that is gone would be SIGBUS).
Growth makes a new file (generation); the older one stays until a step is committed in the newer one.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast_core import arena
from holdfast_core.arena import NO_STEP, ArenaError, ArenaHeader, SlotState
from holdfast_core.config import ARENA_DIR, SidecarConfig
from holdfast_core.manifest import SlotManifest, dump
from holdfast_core.timeline import Copy, History, is_valid

from .memory import Budget
from .slots import ArenaFile, SlotView

_NAME = re.compile(r"^rank-(\d{5,})\.g(\d+)\.arena$")
_MANIFEST_SLACK = 256 << 10  # bytes; room for the manifests of later steps, so that the trainer need not ask for more
_LEASE_NS = 10 * 10**9
_log = logging.getLogger(__name__)


class Arenas:
    """All arenas of this pod. Files of a rank are kept oldest generation first.

    `reserve` and `allocate` block and run in threads; the rest is quick. The table of files is replaced, never changed in
    place, so that a scan needs no lock.
    """

    def __init__(self, config: SidecarConfig, budget: Budget | None = None) -> None:
        self.config = config
        self.folder = Path(config.shared_dir) / ARENA_DIR
        self.ranks = range(config.first_rank, config.first_rank + config.processes)
        self.attempt = 0
        self.every = 0
        self.error = ""
        self.budget = budget or Budget(config, self.folder)
        self._files: dict[int, tuple[ArenaFile, ...]] = {rank: () for rank in self.ranks}
        self._growing = threading.Lock()
        self._leases: dict[tuple[ArenaFile, int], int] = {}

    def assume(self, config: SidecarConfig) -> None:
        """A spare, which has no arena yet, gets its ranks."""
        self.config = config
        self.ranks = range(config.first_rank, config.first_rank + config.processes)
        self._files = {rank: () for rank in self.ranks}
        self.budget.config = config

    # --- which files there are

    @property
    def total_bytes(self) -> int:
        """Memory that the arenas take."""
        return sum(f.header.total_bytes for f in self._all())

    @property
    def slot_bytes(self) -> int:
        """Size of the largest slot."""
        return max((f.header.slot_bytes for f in self._all()), default=0)

    def _all(self) -> Iterator[ArenaFile]:
        for files in tuple(self._files.values()):
            yield from files

    def adopt(self) -> int:
        """Take over what an earlier sidecar of this pod left; returns the highest fence found. Foreign files are deleted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.chmod(self.folder, 0o777)  # noqa: S103 - the trainer may run as another user
        for path in sorted(self.folder.iterdir()):
            self._adopt_file(path)
        for file in self._all():
            for index in range(file.header.slots):
                arena.set_lease(file.buf, index, 0)
        self.attempt = max((arena.fence(f.buf) for f in self._all()), default=0)
        return self.attempt

    def _adopt_file(self, path: Path) -> None:
        try:
            file = self._open_ours(path)
        except (ArenaError, OSError) as error:
            _log.warning("deleting %s: %s", path, error)
            path.unlink(missing_ok=True)
            return
        files = (*self._files[file.header.rank], file)
        self._files[file.header.rank] = tuple(sorted(files, key=lambda f: f.header.generation))

    def _open_ours(self, path: Path) -> ArenaFile:
        if not _NAME.match(path.name):
            raise ArenaError("not an arena's name")
        file = ArenaFile.open(path)
        if file.header.job_uid != self.config.job_uid:
            raise ArenaError(f"belongs to job {file.header.job_uid}")
        if file.header.rank not in self._files or file.header.world_size != self.config.world_size:
            raise ArenaError(f"is for rank {file.header.rank} of {file.header.world_size}")
        return file

    def drop_broken(self) -> None:
        """Delete files whose first page or size is wrong: nothing in them can be trusted."""
        for rank, files in list(self._files.items()):
            for file in files:
                try:
                    file.require_intact()
                except ArenaError as error:
                    _log.warning("deleting the arena of rank %d: %s", rank, error)
                    self._remove(rank, file)

    def _remove(self, rank: int, file: ArenaFile) -> None:
        self._files[rank] = tuple(f for f in self._files[rank] if f is not file)
        file.path.unlink(missing_ok=True)

    # --- making room

    def prefault(self) -> None:
        """Create the arenas of the configured size. A size that does not fit is told in `error`."""
        for rank in self.ranks if self.config.index >= 0 else ():  # a spare has no ranks yet
            if self.config.slot_bytes and not self._files[rank]:
                self.reserve(rank, self.config.slot_bytes)

    def reserve(self, rank: int, slot_bytes: int) -> ArenaFile:
        """The rank's arena with slots of at least this size; grows if need be. Raises ArenaError that says what to set."""
        with self._growing:
            files = self._files[rank]
            if files and files[-1].header.slot_bytes >= slot_bytes:
                return files[-1]
            try:
                return self._grow(rank, arena.align(max(slot_bytes, self.config.slot_bytes), arena.PAGE))
            except ArenaError as error:
                self.error = str(error)
                raise

    def _grow(self, rank: int, slot_bytes: int) -> ArenaFile:
        for file in self._files[rank]:
            if not any(s.state is SlotState.SEALED for s in file.slots()):
                self._remove(rank, file)
        generation = max((f.header.generation for f in self._files[rank]), default=-1) + 1
        header = ArenaHeader(self.config.job_uid, rank, self.config.world_size, self.config.slots, slot_bytes, generation)
        self.budget.require(header, self.total_bytes)
        file = ArenaFile.create(self.folder / arena.file_name(rank, generation), header, self.attempt)
        if self._files[rank]:
            arena.set_committed(file.buf, max(arena.committed(f.buf) for f in self._files[rank]))
            arena.set_floor(file.buf, max(arena.floor(f.buf) for f in self._files[rank]))
            arena.set_protected(file.buf, max(arena.protected(f.buf) for f in self._files[rank]))
            arena.set_pending(file.buf, max(arena.pending(f.buf) for f in self._files[rank]))
        self._files[rank] = (*self._files[rank], file)
        arena.set_every(file.buf, self.every)  # last: this runs in a thread, and a new interval reaches either us or the list
        self.error = ""
        _log.info("arena of rank %d: %d slots of %d bytes", rank, header.slots, slot_bytes)
        return file

    def allocate(self, rank: int, manifest: SlotManifest, committed: int) -> tuple[ArenaFile, int, memoryview]:
        """A slot opened for a restored snapshot: file, index and data area."""
        need = arena.slot_bytes_for(manifest.data_bytes, 2 * len(dump(manifest)) + _MANIFEST_SLACK)
        return self._open_slot(rank, need, manifest.data_bytes, manifest.step, committed)

    def allocate_image(self, rank: int, data_bytes: int, manifest_bytes: int, step: int) -> tuple[ArenaFile, int, memoryview]:
        """The same for a snapshot that arrives with its manifest behind it; the area is for both."""
        need = arena.slot_bytes_for(data_bytes, 2 * manifest_bytes + _MANIFEST_SLACK)
        return self._open_slot(rank, need, data_bytes + manifest_bytes, step, step)

    def _open_slot(self, rank: int, need: int, nbytes: int, step: int, committed: int) -> tuple[ArenaFile, int, memoryview]:
        file = self.reserve(rank, need)
        file.require_intact()
        index = arena.choose_slot(file.slots(), committed, time.monotonic_ns(), kept_steps=arena.kept(file.buf))
        if index is None:
            raise ArenaError(f"no slot of rank {rank} is free for step {step}")
        return file, index, arena.begin(file.buf, file.header, index, nbytes)

    # --- what is in them

    def views(self, rank: int) -> Iterator[SlotView]:
        """Sealed snapshots with a good header and manifest."""
        for file in self._files[rank]:
            for slot in file.slots():
                view = SlotView(file, slot)
                if slot.state is SlotState.SEALED and file.is_plausible(view):
                    yield view

    def sealed(self) -> dict[int, tuple[Copy, ...]]:
        """The snapshots in RAM by rank."""
        return {rank: tuple(sorted({v.copy for v in self.views(rank)})) for rank in self.ranks}

    def find(self, rank: int, copy: Copy) -> SlotView | None:
        """A rank's snapshot of a step, or None."""
        return next((v for v in self.views(rank) if v.copy == copy), None)

    def at(self, rank: int, path: str, index: int) -> SlotView | None:
        """The snapshot in a slot that a trainer named; None if there is no such slot or nothing valid in it."""
        views = (v for v in self.views(rank) if str(v.file.path) == path and v.slot.index == index)
        return next(views, None)

    def require(self, rank: int, copy: Copy) -> SlotView:
        """Like `find`, but says why not; raises ArenaError."""
        for file in self._files[rank]:
            file.require_intact()
        view = self.find(rank, copy)
        if view is None:
            problems = [p for file in self._files[rank] for p in file.problems()]
            detail = f": {'; '.join(problems)}" if problems else ""
            raise ArenaError(f"step {copy.step} of attempt {copy.attempt} is not in memory{detail}")
        return view

    # --- what the coordinator and the commands change

    def fence(self, attempt: int) -> None:
        """Only this attempt may write from now on."""
        self.attempt = attempt
        for file in self._intact():
            arena.set_fence(file.buf, attempt)
            arena.set_floor(file.buf, NO_STEP)

    def resync(self, step: int) -> None:
        """Seal nothing below this step; what is not committed below it is free."""
        for file in self._intact():
            arena.set_floor(file.buf, step)

    def set_every(self, steps: int) -> None:
        """The interval of snapshots, for these arenas and those to come."""
        self.every = steps
        for file in self._intact():
            arena.set_every(file.buf, steps)

    def lasting(self) -> dict[int, tuple[Copy, ...]]:
        """The snapshots in RAM by rank that may be committed or are: those that the writer may not overwrite at will."""
        files = list(self._intact())
        floor = max((arena.floor(f.buf) for f in files), default=NO_STEP)
        committed = max((arena.committed(f.buf) for f in files), default=NO_STEP)
        kept = {r: (c for c in copies if not committed < c.step < floor) for r, copies in self.sealed().items()}
        return {rank: tuple(copies) for rank, copies in kept.items()}

    def commit(self, step: int) -> None:
        """A step is sealed by all ranks (NO_STEP: none is). Older slots may be reused, older generations go."""
        for file in self._intact():
            arena.set_committed(file.buf, step)
        for rank, files in list(self._files.items()):
            if step != NO_STEP and len(files) > 1 and any(s.step == step for s in _sealed(files[-1])):
                for old in files[:-1]:
                    if not any(s.step in arena.kept(old.buf) for s in _sealed(old)):
                        self._remove(rank, old)

    def keep(self, protected: int, pending: int) -> None:
        """The writer may not overwrite these steps (NO_STEP: none)."""
        for file in self._intact():
            arena.set_protected(file.buf, protected)
            arena.set_pending(file.buf, pending)

    def kept(self) -> tuple[int, int]:
        """The protected and the pending step, as the arenas have them; for a sidecar that restarts."""
        files = list(self._intact())
        protected, pending = ([read(f.buf) for f in files] for read in (arena.protected, arena.pending))
        return max(protected, default=NO_STEP), max(pending, default=NO_STEP)

    def committed(self) -> Copy | None:
        """The newest step that the arenas themselves call committed; for a sidecar that restarts."""
        steps = [arena.committed(f.buf) for f in self._intact()]
        step = max(steps, default=NO_STEP)
        copies = {c for copies in self.sealed().values() for c in copies if c.step == step}
        return max(copies, default=None)

    def clear_void(self, history: History) -> None:
        """Forget snapshots that a later attempt has abandoned, and slots that can't be read."""
        for file in self._intact():
            file.clear_unreadable()
            for slot in _sealed(file):
                if not is_valid(Copy(slot.step, slot.attempt), history):
                    arena.clear(file.buf, slot.index)

    def _intact(self) -> Iterator[ArenaFile]:
        for file in self._all():
            if file.is_whole():
                yield file

    # --- leases of readers

    def lease(self, view: SlotView) -> Callable[[], None]:
        """Keep the writer off a slot until the returned function is called; renewed by `renew`."""
        key = (view.file, view.slot.index)
        self._leases[key] = self._leases.get(key, 0) + 1
        self._extend(key)
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._release(key)

        return release

    def renew(self) -> None:
        """Extend all leases. A crash of this process lets them run out."""
        for key in self._leases:
            self._extend(key)

    def _extend(self, key: tuple[ArenaFile, int]) -> None:
        if key[0].is_whole():
            arena.set_lease(key[0].buf, key[1], time.monotonic_ns() + _LEASE_NS)

    def _release(self, key: tuple[ArenaFile, int]) -> None:
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            if key[0].is_whole():
                arena.set_lease(key[0].buf, key[1], 0)


def _sealed(file: ArenaFile) -> Iterator[arena.Slot]:
    return (s for s in file.slots() if s.state is SlotState.SEALED)
