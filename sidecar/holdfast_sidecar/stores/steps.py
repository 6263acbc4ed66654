"""Checkpoints in a store: shards first, the manifest last, old steps given up. All blocking: called through a `lane`.

The layout is `holdfast_core.durable`'s. Whatever is read is checked before it is believed: names, sizes, checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from holdfast_core import durable, safetensors, wire
from holdfast_core.durable import MANIFEST, Shard, ShardTensor, StepManifest
from holdfast_core.fastcopy import crc32
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest, entry_data
from holdfast_core.messages import StoreInventory
from holdfast_core.timeline import Copy, History, Resume, merge

from ..slots import SlotView
from .base import READ_SIZE, TEMPORARY, NotFound, Reader, Store, StoreError
from .lane import Pulse

_MANIFEST_LIMIT = 256 << 20  # bytes
_RECORD_LIMIT = 64 << 10
Allocate = Callable[[SlotManifest], memoryview]


class Fenced(StoreError):
    """A higher attempt has been here: this one must not commit."""


@dataclass
class _Digest:
    """Size and CRC-32 of what passed through."""

    nbytes: int = 0
    crc32: int = 0

    def add(self, data: bytes) -> bytes:
        self.nbytes += len(data)
        self.crc32 = crc32(memoryview(data), self.crc32)
        return data


@dataclass
class Steps:
    """The checkpoints of one job in one store."""

    store: Store
    world_size: int

    def write_shard(self, copy: Copy, slot: SlotView, pulse: Pulse) -> Shard:
        """Store a slot's snapshot. Raises CorruptShard (nothing stays), ArenaError (the slot was reused), StoreError."""
        manifest = slot.manifest()
        digest = _Digest()
        name = durable.shard_file(manifest.rank)
        parts = (digest.add(part) for part in _verified(slot, manifest, pulse))
        self.store.write(f"{durable.step_dir(copy)}/{name}", parts)
        return Shard(manifest.rank, name, digest.nbytes, digest.crc32, tuple(_described(e) for e in manifest.entries))

    def manifest(self, copy: Copy) -> StepManifest:
        """A step's manifest; raises NotFound, or CorruptShard if it can't be used for this job."""
        folder = durable.step_dir(copy)
        try:
            found = wire.loads(StepManifest, self.store.read(f"{folder}/{MANIFEST}", _MANIFEST_LIMIT))
        except wire.WireError as error:
            raise CorruptShard(f"{folder}/{MANIFEST}: {error}") from error
        problem = durable.problem(found, copy, self.world_size)
        if problem:
            raise CorruptShard(f"{folder}/{MANIFEST} {problem}")
        return found

    def fetch_shard(self, copy: Copy, rank: int, allocate: Allocate, pulse: Pulse) -> SlotManifest:
        """Read a rank's shard into the memory that `allocate` gives for it, checking size and checksum on the way."""
        shard = next(s for s in self.manifest(copy).shards if s.rank == rank)
        path = f"{durable.step_dir(copy)}/{durable.shard_file(rank)}"
        digest = _Digest()
        try:
            with self.store.open(path) as reader:
                manifest = _read_shard(reader, digest, allocate, pulse, shard)
        except NotFound as error:
            raise CorruptShard(f"{path} is missing") from error
        except CorruptShard as error:
            raise CorruptShard(f"{path}: {error}") from error
        if (digest.nbytes, digest.crc32) != (shard.nbytes, shard.crc32):
            raise CorruptShard(f"{path}: {_difference(digest, shard)}")
        if (manifest.rank, manifest.step, manifest.attempt) != (rank, copy.step, copy.attempt):
            raise CorruptShard(f"{path}: holds step {manifest.step}.a{manifest.attempt} of rank {manifest.rank}")
        return manifest

    def commit(self, manifest: StepManifest, resume: Resume, history: History, current: Callable[[], bool]) -> None:
        """Make a step exist. `resume` is the committing attempt's; raises Fenced if it is not the newest any more."""
        recorded = self.records()
        higher = max((r.attempt for r in recorded), default=0)
        if higher > resume.attempt:
            raise Fenced(f"attempt {higher} is recorded in the store, this is attempt {resume.attempt}: {_OTHER_JOB}")
        if any(r.attempt == resume.attempt and r != resume for r in recorded):
            raise Fenced(f"another attempt {resume.attempt} is recorded in the store: {_OTHER_JOB}")
        for record in sorted({*history, resume} - set(recorded)):
            self.store.write(durable.attempt_file(record.attempt), [wire.dumps(record)])
        if not current():
            raise Fenced(f"attempt {resume.attempt} is over")
        copy = Copy(manifest.step, manifest.attempt)
        self.store.write(f"{durable.step_dir(copy)}/{MANIFEST}", [wire.dumps(manifest)])

    def records(self) -> History:
        """The attempts that the store knows of, oldest first. What can't be read as a record is none."""
        found = []
        for name in self.store.listing(durable.ATTEMPTS):
            number = durable.parse_attempt_file(name)
            record = self._record(number) if number is not None else None
            if record is not None:
                found.append(record)
        return tuple(sorted(found))

    def _record(self, number: int) -> Resume | None:
        try:
            record = wire.loads(Resume, self.store.read(durable.attempt_file(number), _RECORD_LIMIT))
        except (NotFound, wire.WireError):
            return None
        return record if record.attempt == number else None

    def inventory(self, name: str) -> StoreInventory:
        """Which steps can be had here, and why others can't. Raises StoreError."""
        copies, unusable = [], []
        for copy in self._folders():
            try:
                self._require_shards(copy)
                copies.append(copy)
            except NotFound:
                continue  # no manifest: the step does not exist
            except CorruptShard as error:
                unusable.append(str(error))
        return StoreInventory(name, tuple(copies), self.records(), tuple(unusable))

    def _folders(self) -> list[Copy]:
        names = self.store.listing("")
        parsed = (durable.parse_step_dir(n) for n, size in names.items() if size < 0)
        return sorted(c for c in parsed if c is not None)

    def _require_shards(self, copy: Copy) -> None:
        folder = durable.step_dir(copy)
        sizes = self.store.listing(folder)
        if MANIFEST not in sizes:
            raise NotFound(f"{folder}/{MANIFEST} does not exist")
        for shard in self.manifest(copy).shards:
            size = sizes.get(durable.shard_file(shard.rank))
            if size is None:
                raise CorruptShard(f"{folder}/{durable.shard_file(shard.rank)} is missing")
            if size != shard.nbytes:
                raise CorruptShard(f"{folder}/{durable.shard_file(shard.rank)} has {size} bytes, not {shard.nbytes}")

    def tidy(self, committed: Copy, history: History, keep: int, attempt: int) -> tuple[Copy, ...]:
        """Give up old steps (manifest first, so that none is ever half there) and leftovers of failed uploads."""
        whole: list[Copy] = []
        partial: list[Copy] = []
        for copy in self._folders():
            (whole if MANIFEST in self.store.listing(durable.step_dir(copy)) else partial).append(copy)
        surplus = durable.to_delete(whole, merge(self.records(), history), keep)
        for copy in surplus:
            self.store.delete(f"{durable.step_dir(copy)}/{MANIFEST}")
        leftovers = [c for c in partial if c.step < committed.step and c.attempt <= attempt]
        for copy in (*surplus, *leftovers):
            self.store.delete(durable.step_dir(copy))
        for folder in ("", durable.step_dir(committed)):
            self._sweep(folder)
        return surplus

    def _sweep(self, folder: str) -> None:
        for name in self.store.listing(folder):
            if name.startswith(".") and name.endswith(TEMPORARY) and "/" not in name:
                self.store.delete(f"{folder}/{name}".lstrip("/"))


_OTHER_JOB = "another job uses this path, or the store was unreachable when this one started: give the store another path"


def _verified(slot: SlotView, manifest: SlotManifest, pulse: Pulse) -> Iterator[bytes]:
    """The shard file piece by piece. Each piece is copied, then checked, then handed on: a writer can't change it between."""
    yield safetensors.header(manifest)
    for entry, index, chunk in slot.pieces(manifest):
        pulse.beat()
        piece = bytes(chunk)
        slot.check(entry, index, piece)
        yield piece


def _described(entry: Entry) -> ShardTensor:
    return ShardTensor(entry.key, entry.dtype, entry.shape, entry.placement, entry.global_shape, entry.global_offset)


def _read_shard(reader: Reader, digest: _Digest, allocate: Allocate, pulse: Pulse, shard: Shard) -> SlotManifest:
    first = digest.add(_exactly(reader, 8))
    length = safetensors.header_length(first)
    if length > shard.nbytes:
        raise CorruptShard(f"header of {length} bytes in a file of {shard.nbytes}")
    manifest, spans = safetensors.parse_header(digest.add(_exactly(reader, length)))
    _require_gapless(spans, shard.nbytes - 8 - length, manifest)
    data = allocate(manifest)
    for entry, start, end in spans:
        target = entry_data(data, entry)
        for at in range(0, end - start, READ_SIZE):
            size = min(READ_SIZE, end - start - at)
            pulse.beat(size)
            target[at : at + size] = digest.add(_exactly(reader, size))
    if reader.read(1):
        raise CorruptShard("has bytes behind its end")
    return manifest


def _require_gapless(spans: Iterable[tuple[Entry, int, int]], nbytes: int, manifest: SlotManifest) -> None:
    """The tensors follow each other and fill the file; a lying header can't make us allocate more than that."""
    at = 0
    for entry, start, end in spans:
        if start != at:
            raise CorruptShard(f"{entry.key} starts at {start}, expected {at}")
        at = end
    if at != nbytes:
        raise CorruptShard(f"its header describes {at} bytes of data, the manifest {nbytes}")
    if manifest.data_bytes > nbytes + 4096 * (len(manifest.entries) + 1):
        raise CorruptShard(f"its manifest spreads {nbytes} bytes of data over {manifest.data_bytes}")


def _exactly(reader: Reader, size: int) -> bytes:
    data = reader.read(size)
    if len(data) == size:
        return data
    gathered = bytearray(data)
    while len(gathered) < size:
        more = reader.read(size - len(gathered))
        if not more:
            raise CorruptShard(f"is cut short: {len(gathered)} of {size} bytes")
        gathered += more
    return bytes(gathered)


def _difference(digest: _Digest, shard: Shard) -> str:
    if digest.nbytes != shard.nbytes:
        return f"has {digest.nbytes} bytes, not {shard.nbytes}"
    return f"checksum mismatch: {digest.crc32:#010x}, the manifest says {shard.crc32:#010x}"
