"""One arena file, mapped, and one snapshot in it: opening, creating, and looking without trust. Used by `arenas`."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast_core import arena
from holdfast_core.arena import ArenaError, ArenaHeader, Slot, SlotState
from holdfast_core.checksum import ALGORITHM, chunks
from holdfast_core.fastcopy import crc32
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest, entry_data, load
from holdfast_core.timeline import Copy


class NoMemory(ArenaError):
    """An arena does not fit; the text says what to set."""


class ArenaFile:
    """A mapped arena. `header` is what it said when it was opened."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.buf = memoryview(mmap.mmap(descriptor, size))
        self.header: ArenaHeader
        self._plausible: dict[int, tuple[Slot, bool]] = {}

    def __del__(self) -> None:
        os.close(self._descriptor)

    @classmethod
    def open(cls, path: Path) -> ArenaFile:
        """Map an existing file; raises ArenaError if it is none of ours."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        size = os.fstat(descriptor).st_size
        if not size:
            os.close(descriptor)
            raise ArenaError("file is empty")
        file = cls(path, descriptor, size)
        file.header = arena.read_header(file.buf)
        return file

    @classmethod
    def create(cls, path: Path, header: ArenaHeader, attempt: int) -> ArenaFile:
        """Make a file and fault in all of it, so that no later write can fail; raises ArenaError if memory runs out."""
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, header.total_bytes)
        except OSError as error:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise NoMemory(_no_room(error, path, header)) from error
        file = cls(path, descriptor, header.total_bytes)
        file.header = header
        arena.format_arena(file.buf, header, attempt)
        os.fchmod(descriptor, 0o666)  # the trainer may run as another user
        os.rename(temporary, path)
        return file

    def fileno(self) -> int:
        """Of the open file."""
        return self._descriptor

    def is_whole(self) -> bool:
        """Whether every page of the mapping is backed by the file: else a look at it would be SIGBUS."""
        return os.fstat(self._descriptor).st_size >= self.buf.nbytes

    def require_intact(self) -> None:
        """Raise ArenaError unless size and first page are as they were."""
        if not self.is_whole():
            size = os.fstat(self._descriptor).st_size
            raise ArenaError(f"{self.path.name} was cut short: {size} of {self.buf.nbytes} bytes are left")
        if arena.read_header(self.buf) != self.header:
            raise ArenaError(f"{self.path.name}: its header has changed")

    def slots(self) -> list[Slot]:
        """All slots with a believable header; none if the file was cut short."""
        if not self.is_whole():
            return []
        return [slot for i in range(self.header.slots) if (slot := self._slot(i)) is not None]

    def _slot(self, index: int) -> Slot | None:
        try:
            return arena.read_slot(self.buf, index)
        except ArenaError:
            return None

    def problems(self) -> list[str]:
        """What is wrong with slots that hold something."""
        found = []
        for index in range(self.header.slots):
            try:
                slot = arena.read_slot(self.buf, index)
                if slot.state is SlotState.SEALED:
                    arena.slot_manifest(self.buf, self.header, slot)
            except ArenaError as error:
                found.append(str(error))
        return found

    def clear_unreadable(self) -> None:
        """Slots whose header makes no sense become free: the trainer could not even pass them by."""
        for index in range(self.header.slots):
            if self._slot(index) is None:
                arena.clear(self.buf, index)

    def is_plausible(self, view: SlotView) -> bool:
        """Whether a sealed slot's manifest agrees with its checksum; remembered for as long as the slot stays the same."""
        slot = view.identity
        known = self._plausible.get(slot.index)
        if known is None or known[0] != slot:
            known = (slot, view.has_good_manifest())
            self._plausible[slot.index] = known
        return known[1]


@dataclass(frozen=True)
class SlotView:
    """A snapshot in a slot, as it was seen at one moment. The writer may reuse the slot: `require_unchanged` tells."""

    file: ArenaFile
    slot: Slot

    @property
    def copy(self) -> Copy:
        """Step and attempt of the snapshot."""
        return Copy(self.slot.step, self.slot.attempt)

    @property
    def identity(self) -> Slot:
        """The slot without its lease."""
        s = self.slot
        return Slot(s.index, s.state, s.step, s.attempt, s.data_bytes, s.manifest_bytes, s.sequence)

    def require_unchanged(self) -> None:
        """Raise ArenaError if the slot does not hold this snapshot any more."""
        if not self.file.is_whole():
            raise ArenaError(f"{self.file.path.name} was cut short")
        now = SlotView(self.file, arena.read_slot(self.file.buf, self.slot.index))
        if now.identity != self.identity:
            raise ArenaError(f"slot {self.slot.index} was reused while step {self.slot.step} was read")

    def has_good_manifest(self) -> bool:
        """Whether the manifest's bytes agree with their checksum."""
        try:
            arena.slot_manifest(self.file.buf, self.file.header, self.slot)
        except ArenaError:
            return False
        return True

    def manifest(self) -> SlotManifest:
        """The checked manifest; raises ArenaError or CorruptShard."""
        self.require_unchanged()
        try:
            raw = arena.slot_manifest(self.file.buf, self.file.header, self.slot)
        except ArenaError as error:
            self.require_unchanged()  # a reused slot is not a corrupt one
            raise CorruptShard(str(error)) from error
        found = load(raw)
        wanted = (self.slot.step, self.slot.attempt, self.file.header.rank, self.file.header.world_size)
        if (found.step, found.attempt, found.rank, found.world_size) != wanted:
            raise CorruptShard(f"the manifest in slot {self.slot.index} is not of its step, attempt or rank")
        if found.algorithm != ALGORITHM:
            raise CorruptShard(f"checksum algorithm {found.algorithm!r}, this build knows {ALGORITHM!r}")
        return found

    def data(self) -> memoryview:
        """The data area."""
        return arena.slot_data(self.file.buf, self.file.header, self.slot)

    def pieces(self, manifest: SlotManifest) -> Iterator[tuple[Entry, int, memoryview]]:
        """Entry, chunk number and bytes, in the manifest's order; each only after a look whether it is still there."""
        data = self.data()
        for entry in manifest.entries:
            view = entry_data(data, entry)
            if len(entry.checksums) != sum(1 for _ in chunks(view)):
                raise CorruptShard(f"{entry.key}: has {len(entry.checksums)} checksums for {entry.nbytes} bytes")
            for index, chunk in enumerate(chunks(view)):
                self.require_unchanged()
                yield entry, index, chunk
        self.require_unchanged()

    def check(self, entry: Entry, index: int, piece: bytes | memoryview) -> None:
        """Compare a chunk with its checksum; raises CorruptShard, or ArenaError if the slot was merely reused."""
        if crc32(memoryview(piece)) != entry.checksums[index]:
            self.require_unchanged()  # as above
            raise CorruptShard(f"{entry.key}: checksum mismatch in chunk {index} of step {self.slot.step}")

    def verify(self) -> SlotManifest:
        """Check every byte; raises ArenaError or CorruptShard. Blocks for as long as reading it all takes."""
        self.file.require_intact()
        manifest = self.manifest()
        for entry, index, chunk in self.pieces(manifest):
            self.check(entry, index, chunk)
        return manifest

    def clear(self) -> None:
        """Forget the snapshot, if it is still the same: a slot that was reused holds a good one, or is being written."""
        with suppress(ArenaError):
            self.require_unchanged()
            arena.clear(self.file.buf, self.slot.index)


def _no_room(error: OSError, path: Path, header: ArenaHeader) -> str:
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
        mib = -(-header.total_bytes >> 20)
        return (
            f"no memory for {header.slots} slots of {header.slot_bytes} bytes: the volume at {path.parent} needs {mib} MiB more"
        )
    return f"cannot create {path}: {error.strerror}"
