"""Layout of an arena: one file of shared memory per local rank, several snapshots in it, self-describing.

    page 0          header: who it belongs to, sizes, and words that change: fence, committed, floor, every, protected, pending
    page 1..slots   one slot header each
    then            `slots` regions of `slot_bytes` each: the tensors' bytes, then the slot manifest (JSON)

The sidecar owns and creates the file; the trainer writes snapshots into slots; both read. Everything works on a writable
buffer that the caller mapped, so that a file cut short or with flipped bits raises `ArenaError` instead of being believed.
A slot is published by one aligned 8-byte write of its state, after everything else: a crash before it leaves the other
slots as they were. All numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"HOLDFAST"
VERSION = 2
PAGE = 4096
ALIGN = 64  # alignment of each tensor in a slot: a cache line, and what vector copies like
NO_STEP = -1

_HEADER = struct.Struct("<8sIIQIII4x64s")
_HEADER_CRC = 104
_ATTEMPT = 128
_COMMITTED = 136
_FLOOR = 144
_EVERY = 152
_PROTECTED = 160
_PENDING = 168
_SLOT = struct.Struct("<qQQQII")  # step, attempt, data bytes, manifest bytes, manifest crc, sequence
_SLOT_FIELDS = 8
_SLOT_CRC = _SLOT_FIELDS + _SLOT.size
_LEASE = 64
_U32 = struct.Struct("<I")


class ArenaError(ValueError):
    """The bytes are not a usable arena or slot; the text says what is wrong."""


class SlotState(IntEnum):
    """What a slot holds. Only SEALED slots are ever restored from."""

    EMPTY = 0
    WRITING = 1
    SEALED = 2


@dataclass(frozen=True)
class ArenaHeader:
    """The unchanging part of an arena. `slot_bytes` counts data and manifest of one snapshot."""

    job_uid: str
    rank: int
    world_size: int
    slots: int
    slot_bytes: int
    generation: int = 0

    @property
    def total_bytes(self) -> int:
        """Size of the whole file in bytes."""
        return self.region(self.slots)

    def region(self, slot: int) -> int:
        """Offset of a slot's region in the file."""
        return PAGE * (1 + self.slots) + slot * self.slot_bytes


@dataclass(frozen=True)
class Slot:
    """One slot as its header tells it. `lease_until` is in monotonic nanoseconds, 0 when free."""

    index: int
    state: SlotState
    step: int = NO_STEP
    attempt: int = 0
    data_bytes: int = 0
    manifest_bytes: int = 0
    sequence: int = 0
    lease_until: int = 0


def align(offset: int, to: int = ALIGN) -> int:
    """The next multiple of `to`."""
    return -(-offset // to) * to


def slot_bytes_for(data_bytes: int, manifest_bytes: int) -> int:
    """Region size that holds a snapshot, in whole pages."""
    return align(data_bytes + manifest_bytes, PAGE)


def file_name(rank: int, generation: int) -> str:
    """Name of an arena file. The job's UID is in the header: the folder belongs to one pod."""
    return f"rank-{rank:05d}.g{generation}.arena"


def format_arena(buf: memoryview, header: ArenaHeader, attempt: int) -> None:
    """Write an empty arena. The magic goes last, so that a half-formatted file is never taken for one."""
    if buf.nbytes < header.total_bytes:
        raise ArenaError(f"file has {buf.nbytes} bytes, an arena of this shape needs {header.total_bytes}")
    uid = header.job_uid.encode()
    if len(uid) > 64:
        raise ArenaError(f"job UID {header.job_uid!r} is longer than 64 bytes")
    buf[: PAGE * (1 + header.slots)] = bytes(PAGE * (1 + header.slots))
    raw = _HEADER.pack(MAGIC, VERSION, header.slots, header.slot_bytes, header.rank, header.world_size, header.generation, uid)
    set_fence(buf, attempt)
    set_committed(buf, NO_STEP)
    set_floor(buf, NO_STEP)
    set_protected(buf, NO_STEP)
    set_pending(buf, NO_STEP)
    _U32.pack_into(buf, _HEADER_CRC, zlib.crc32(raw))
    buf[8 : _HEADER.size] = raw[8:]
    buf[:8] = MAGIC


def read_header(buf: memoryview) -> ArenaHeader:
    """Parse and check page 0; raises ArenaError."""
    if buf.nbytes < PAGE:
        raise ArenaError(f"file has only {buf.nbytes} bytes")
    raw = bytes(buf[: _HEADER.size])
    magic, version, slots, slot_bytes, rank, world, generation, uid = _HEADER.unpack(raw)
    if magic != MAGIC:
        raise ArenaError("not an arena (wrong magic)")
    if version != VERSION:
        raise ArenaError(f"arena version {version}, this build reads {VERSION}")
    if zlib.crc32(raw) != _U32.unpack_from(buf, _HEADER_CRC)[0]:
        raise ArenaError("header checksum mismatch")
    header = ArenaHeader(uid.rstrip(b"\0").decode(), rank, world, slots, slot_bytes, generation)
    if buf.nbytes < header.total_bytes:
        raise ArenaError(f"file has {buf.nbytes} bytes, its header says {header.total_bytes}: cut short")
    return header


def _load(buf: memoryview, at: int) -> int:
    return buf[at : at + 8].cast("q")[0]


def _store(buf: memoryview, at: int, word: int) -> None:
    """One aligned store, which the other process sees as a whole; `struct.pack_into` writes zeros and then byte by byte."""
    buf[at : at + 8].cast("q")[0] = word


def fence(buf: memoryview) -> int:
    """The attempt that may write."""
    return _load(buf, _ATTEMPT)


def set_fence(buf: memoryview, attempt: int) -> None:
    """Let only `attempt` write from now on."""
    _store(buf, _ATTEMPT, attempt)


def committed(buf: memoryview) -> int:
    """Newest step that every rank of the job is known to have sealed, or NO_STEP."""
    return _load(buf, _COMMITTED)


def set_committed(buf: memoryview, step: int) -> None:
    """Tell the trainer which step is safe, so that older slots may be reused."""
    _store(buf, _COMMITTED, step)


def floor(buf: memoryview) -> int:
    """Steps below this one are not sealed, and never committed if they are not yet; NO_STEP: no such limit."""
    return _load(buf, _FLOOR)


def set_floor(buf: memoryview, step: int) -> None:
    """Let the ranks meet again at this step: the coordinator commits none below it any more."""
    _store(buf, _FLOOR, step)


def every(buf: memoryview) -> int:
    """The interval of snapshots in steps; 0, as in a new arena, and 1 mean each step. See `is_due`."""
    return _load(buf, _EVERY)


def set_every(buf: memoryview, steps: int) -> None:
    """Tell the trainer how often to take a snapshot. Raises ValueError for what is no interval."""
    if not 0 <= steps < 1 << 63:
        raise ValueError(f"an interval of {steps} steps is not one")
    _store(buf, _EVERY, steps)


def kept(buf: memoryview) -> frozenset[int]:
    """Steps that the writer may not overwrite, however old: peers' parity is of use only beside the rank's own data."""
    return frozenset(step for step in (protected(buf), pending(buf)) if step != NO_STEP)


def protected(buf: memoryview) -> int:
    """The step that peers hold whole parity of, as far as this pod was told; or NO_STEP."""
    return _load(buf, _PROTECTED)


def set_protected(buf: memoryview, step: int) -> None:
    """Keep this step. The one before is free from now on."""
    _store(buf, _PROTECTED, step)


def pending(buf: memoryview) -> int:
    """The step that peers are making parity of, or have made but may not have agreed on; or NO_STEP."""
    return _load(buf, _PENDING)


def set_pending(buf: memoryview, step: int) -> None:
    """Keep this step too. To protect the pending one, `set_protected` goes first: it is kept at every moment."""
    _store(buf, _PENDING, step)


def is_due(every_steps: int, step: int) -> bool:
    """Whether the snapshot of `step` is to be taken, counted from step 0: all ranks then agree without a word."""
    return every_steps <= 1 or (step + 1) % every_steps == 0


def read_slot(buf: memoryview, index: int) -> Slot:
    """A slot's header. A sealed slot whose header does not match its checksum raises ArenaError."""
    at = PAGE * (1 + index)
    word = _load(buf, at)
    if word not in SlotState._value2member_map_:
        raise ArenaError(f"slot {index}: unknown state {word}")
    lease = _load(buf, at + _LEASE)
    state = SlotState(word)
    raw = bytes(buf[at + _SLOT_FIELDS : at + _SLOT_CRC])
    step, attempt, data, manifest, _, sequence = _SLOT.unpack(raw)
    if state is not SlotState.SEALED:
        return Slot(index, state, sequence=sequence, lease_until=lease)
    if zlib.crc32(raw) != _U32.unpack_from(buf, at + _SLOT_CRC)[0]:
        raise ArenaError(f"slot {index}: header checksum mismatch")
    return Slot(index, state, step, attempt, data, manifest, sequence, lease)


def begin(buf: memoryview, header: ArenaHeader, index: int, data_bytes: int) -> memoryview:
    """Open a slot for writing and return its data area. From here on its former content is gone."""
    if data_bytes > header.slot_bytes:
        raise ArenaError(f"snapshot of {data_bytes} bytes does not fit a slot of {header.slot_bytes}")
    _store(buf, PAGE * (1 + index), SlotState.WRITING)
    start = header.region(index)
    return buf[start : start + data_bytes]


def seal(
    buf: memoryview,
    header: ArenaHeader,
    index: int,
    *,
    step: int,
    attempt: int,
    data_bytes: int,
    manifest: bytes,
    writer: int | None = None,
) -> None:
    """Write manifest and slot header, then publish the slot. Raises ArenaError if fenced or too big.

    `writer` is the attempt that writes, if it restores a copy made by another `attempt`.
    """
    writer = attempt if writer is None else writer
    if fence(buf) != writer:
        raise ArenaError(f"attempt {writer} is fenced: attempt {fence(buf)} writes now")
    if data_bytes + len(manifest) > header.slot_bytes:
        need = slot_bytes_for(data_bytes, len(manifest))
        raise ArenaError(f"snapshot needs {need} bytes, a slot has {header.slot_bytes}: checkpoint.memory.size must grow")
    at = PAGE * (1 + index)
    sequence = (_SLOT.unpack_from(buf, at + _SLOT_FIELDS)[5] + 1) & 0xFFFFFFFF
    start = header.region(index) + data_bytes
    buf[start : start + len(manifest)] = manifest
    raw = _SLOT.pack(step, attempt, data_bytes, len(manifest), zlib.crc32(manifest), sequence)
    buf[at + _SLOT_FIELDS : at + _SLOT_CRC] = raw
    _U32.pack_into(buf, at + _SLOT_CRC, zlib.crc32(raw))
    _store(buf, at, SlotState.SEALED)


def clear(buf: memoryview, index: int) -> None:
    """Forget a slot, for example one whose bytes turned out to be corrupt."""
    _store(buf, PAGE * (1 + index), SlotState.EMPTY)


def slot_data(buf: memoryview, header: ArenaHeader, slot: Slot) -> memoryview:
    """A sealed slot's data area."""
    start = header.region(slot.index)
    if slot.data_bytes + slot.manifest_bytes > header.slot_bytes:
        raise ArenaError(f"slot {slot.index}: {slot.data_bytes} + {slot.manifest_bytes} bytes exceed its region")
    return buf[start : start + slot.data_bytes]


def slot_manifest(buf: memoryview, header: ArenaHeader, slot: Slot) -> bytes:
    """A sealed slot's manifest, checked; raises ArenaError."""
    start = header.region(slot.index) + slot_data(buf, header, slot).nbytes
    raw = bytes(buf[start : start + slot.manifest_bytes])
    crc = _SLOT.unpack_from(buf, PAGE * (1 + slot.index) + _SLOT_FIELDS)[4]
    if zlib.crc32(raw) != crc:
        raise ArenaError(f"slot {slot.index}: manifest checksum mismatch")
    return raw


def set_lease(buf: memoryview, index: int, until_ns: int) -> None:
    """A reader's lease (monotonic nanoseconds; 0 gives it back). The writer then takes another slot."""
    _store(buf, PAGE * (1 + index) + _LEASE, until_ns)


def choose_slot(
    slots: Iterable[Slot], committed_step: int, now_ns: int, floor_step: int = NO_STEP, kept_steps: Collection[int] = ()
) -> int | None:
    """The slot that the next snapshot may overwrite, or None: then the snapshot is skipped.

    A sealed slot is given up only when a newer step is committed (sealed by every rank): ranks can be a step apart, and
    without this rule one rank could overwrite the last step that another one still needs. The exception are steps that are
    promised never to be committed: those above the committed one and below the floor. Sealed steps of abandoned timelines
    are cleared by the sidecar before an attempt starts, so they do not show up here. Kept steps are never given up.
    """
    free = [s for s in slots if s.lease_until <= now_ns and not (s.state is SlotState.SEALED and s.step in kept_steps)]
    for slot in free:
        if slot.state is not SlotState.SEALED or committed_step < slot.step < floor_step:
            return slot.index
    old = [s for s in free if s.step < committed_step]
    return min(old, key=lambda s: s.step).index if old else None
