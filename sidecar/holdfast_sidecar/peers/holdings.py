"""What the peer server can hand out: images in slots, parity in buffers, with the checksums that are stored for them.

What lies between two tensors belongs to nobody: the trainer leaves there what the slot held before, a store does not keep it.
It counts as zeros, so that a snapshot has one image, wherever it was written or brought back to, and parity of it stays parity.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from holdfast_core import arena, crcjoin
from holdfast_core.arena import ArenaError, Slot
from holdfast_core.checksum import CHUNK
from holdfast_core.fastcopy import crc32
from holdfast_core.manifest import CorruptShard, SlotManifest, chunk_count
from holdfast_core.timeline import Copy

from ..arenas import Arenas
from ..slots import SlotView
from .parity import ParityStore
from .parity_file import ParityFile
from .sums import RECORD, Records
from .wire import IMAGE, PIECE, Held, Image, Part

Corrupt = Callable[[int, Copy, str], None]
_REMEMBERED = 3  # snapshots of a rank whose chunks are known: a manifest of 10,000 tensors takes a tenth of a second


class Readable(Protocol):
    """Bytes of a file that are mapped at `view`, from `offset` in the file on; `chunks` cover them in order. `mended` has those
    that count where they are others than are mapped."""

    view: memoryview
    offset: int
    chunks: Records

    def fileno(self) -> int:
        """Of the file."""

    def require_unchanged(self) -> None:
        """Raise ArenaError if it now holds something else."""

    def mended(self, start: int, end: int) -> memoryview | None:
        """A copy of some bytes, if they don't count as they are; None if they do."""


@dataclass(frozen=True)
class Tiles:
    """What covers an image: chunks with their checksums, some of which are gaps: where these start and end."""

    chunks: Records
    gap_starts: Records
    gap_ends: Records


class ImageBytes:
    """A rank's image in its slot."""

    def __init__(self, slot: SlotView, tiles: Tiles) -> None:
        self._slot, self._tiles, self.chunks = slot, tiles, tiles.chunks
        self.offset, self.view = image_area(slot)
        self.copy = slot.copy

    def fileno(self) -> int:
        """See Readable."""
        return self._slot.file.fileno()

    def require_unchanged(self) -> None:
        """See Readable."""
        self._slot.require_unchanged()

    def mended(self, start: int, end: int) -> memoryview | None:
        """See Readable."""
        starts, ends = self._tiles.gap_starts, self._tiles.gap_ends
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(starts, end, "left"))
        if first >= last:
            return None
        raw = bytearray(self.view[start:end])
        begins = np.maximum(starts[first:last], start) - start
        for at, until in zip(begins.tolist(), (np.minimum(ends[first:last], end) - start).tolist(), strict=True):
            raw[at:until] = bytes(until - at)
        return memoryview(raw)


class ParityBytes:
    """A row of a parity buffer."""

    def __init__(self, file: ParityFile, row: int) -> None:
        self._file, self._serial = file, file.serial
        self.view = file.row(row)
        self.offset = file.row_offset(row)
        self.chunks = np.zeros(-(-len(self.view) // PIECE), RECORD)
        self.chunks["start"] = np.arange(len(self.chunks)) * PIECE
        self.chunks["nbytes"] = np.minimum(PIECE, len(self.view) - self.chunks["start"])
        self.chunks["crc"] = file.row_sums(row)

    def fileno(self) -> int:
        """See Readable."""
        return self._file.fileno()

    def require_unchanged(self) -> None:
        """See Readable."""
        if self._file.serial != self._serial or not self._file.whole:
            raise ArenaError("the parity is not held any more")

    def mended(self, start: int, end: int) -> memoryview | None:
        """See Readable."""
        return None


def read(readable: Readable, start: int, end: int) -> memoryview:
    """Bytes as they count."""
    mended = readable.mended(start, end)
    return readable.view[start:end] if mended is None else mended


def verify(readable: Readable, start: int, end: int) -> None:
    """Look at all chunks that reach into these bytes; raises CorruptShard, or ArenaError if something else is there."""
    readable.require_unchanged()
    starts = readable.chunks["start"]
    first, last = int(np.searchsorted(starts, start, "right")) - 1, int(np.searchsorted(starts, end, "left"))
    for at, nbytes, expected in readable.chunks[first:last].tolist():
        if crc32(read(readable, at, at + nbytes)) != expected:
            readable.require_unchanged()  # a reused slot is not a corrupt one
            if crc32(read(readable, at, at + nbytes)) != expected:  # a snapshot is not given up for one bad look
                raise CorruptShard(f"bytes {at} to {at + nbytes} do not match their checksum in memory")


class Holdings:
    """What this pod has. Threads share it. `corrupt` hears of each image that was forgotten because its bytes were wrong."""

    def __init__(self, arenas: Arenas, parity: ParityStore, corrupt: Corrupt) -> None:
        self._arenas, self._parity, self._corrupt = arenas, parity, corrupt
        self._known: OrderedDict[tuple[int, Slot], Tiles] = OrderedDict()
        self._lock = threading.Lock()

    def images(self, copy: Copy) -> tuple[Image, ...]:
        """The images of a copy that are in memory."""
        found = (self._image_of(rank, copy) for rank in self._arenas.ranks)
        return tuple(image for image in found if image is not None)

    def _image_of(self, rank: int, copy: Copy) -> Image | None:
        view = self._arenas.find(rank, copy)
        try:
            return image_of(view) if view is not None else None
        except ArenaError as error:
            self.forget(copy, Part(IMAGE, rank, 0, 0), str(error))
            return None

    def parities(self, copy: Copy, rank: int) -> tuple[Held, ...]:
        """The whole parities of a copy that cover a rank."""
        return self._parity.held(copy, rank)

    def forget(self, copy: Copy, part: Part, problem: str) -> None:
        """What turned out to be corrupt is not held any more, so that nobody counts on it. Whoever reads the slot meanwhile, an
        upload or a trainer, checks what it reads; the writer keeps off it for as long as it is leased."""
        if part.kind != IMAGE:
            self._parity.drop(part.rank, copy, only=part.of)
            return
        view = self._arenas.find(part.rank, copy)
        if view is not None:
            view.clear()
            self._corrupt(part.rank, copy, problem)

    def open(self, copy: Copy, part: Part) -> Readable:
        """What a part is a part of. Raises ArenaError if it is not there or not so long, CorruptShard."""
        found = self.image(copy, part.rank) if part.kind == IMAGE else self._row(copy, part)
        if part.start < 0 or part.nbytes < 1 or part.start + part.nbytes > found.view.nbytes:
            raise ArenaError(f"bytes {part.start} to {part.start + part.nbytes} of {found.view.nbytes} were asked for")
        return found

    def image(self, copy: Copy, rank: int) -> ImageBytes:
        """A rank's image. Raises ArenaError if it is not there, CorruptShard."""
        if rank not in self._arenas.ranks:
            raise ArenaError(f"rank {rank} is not in this pod")
        slot = self._arenas.require(rank, copy)
        return ImageBytes(slot, self._tiles_of(slot))

    def _tiles_of(self, slot: SlotView) -> Tiles:
        key = (os.fstat(slot.file.fileno()).st_ino, slot.identity)
        with self._lock:
            tiles = self._known.pop(key, None)
        if tiles is None:
            tiles = _tiles(slot.manifest(), image_area(slot)[1], slot.slot.data_bytes)
        with self._lock:
            self._known[key] = tiles
            while len(self._known) > _REMEMBERED * len(self._arenas.ranks):
                self._known.popitem(last=False)
        return tiles

    def _row(self, copy: Copy, part: Part) -> Readable:
        file = self._parity.find(part.rank, copy, part.of) if part.rank in self._arenas.ranks else None
        code = file.code if file is not None else None
        if file is None or code is None or not 0 <= part.row < code.parity:
            raise ArenaError(f"there is no such parity of step {copy.step} for rank {part.rank} here")
        return ParityBytes(file, part.row)


def image_of(slot: SlotView) -> Image:
    """Its description; raises ArenaError."""
    raw = arena.slot_manifest(slot.file.buf, slot.file.header, slot.slot)
    return Image(slot.file.header.rank, slot.slot.data_bytes, len(raw), zlib.crc32(raw))


def image_area(slot: SlotView) -> tuple[int, memoryview]:
    """Where an image begins in its file, and its bytes; raises ArenaError."""
    offset = slot.file.header.region(slot.slot.index)
    return offset, slot.file.buf[offset : offset + slot.data().nbytes + slot.slot.manifest_bytes]


def same_bytes(new: Records, base: Records) -> int:
    """How many bytes of an image have the same checksums at the same places in another."""
    return int(new["nbytes"][in_both(new, base)].sum())


def in_both(new: Records, base: Records) -> Records:
    """Which chunks of an image the other has too, at the same place: an array of booleans."""
    known = set(base.tolist())
    return np.fromiter((chunk in known for chunk in new.tolist()), bool, len(new))


def _tiles(manifest: SlotManifest, image: memoryview, data_bytes: int) -> Tiles:
    """What has a checksum in the manifest, the manifest itself, and what lies between; raises CorruptShard."""
    tiles, gaps, at = [], [], 0
    behind = (data_bytes, len(image) - data_bytes, zlib.crc32(image[data_bytes:]), "manifest")
    for start, nbytes, expected, key in [*sorted(_spans(manifest)), behind]:
        if start < at:
            raise CorruptShard(f"{key}: overlaps with another entry")
        if start > at:
            gaps.append((at, start))
            tiles.append((at, start - at, crcjoin.of_zeros(start - at)))
        tiles.append((start, nbytes, expected))
        at = start + nbytes
    starts, ends = np.array(gaps, np.int64).reshape(-1, 2).T.copy()
    return Tiles(np.array(tiles, RECORD), starts, ends)


def _spans(manifest: SlotManifest) -> Iterator[tuple[int, int, int, str]]:
    for entry in manifest.entries:
        if len(entry.checksums) != chunk_count(entry.nbytes) or entry.offset < 0:
            raise CorruptShard(f"{entry.key}: has {len(entry.checksums)} checksums for {entry.nbytes} bytes")
        for number, expected in enumerate(entry.checksums):
            at = number * CHUNK
            yield entry.offset + at, min(CHUNK, entry.nbytes - at), expected, entry.key
