"""Snapshots with known content, written and read as trainers do; and damaged."""

from __future__ import annotations

import dataclasses
import mmap
import random
from pathlib import Path

from holdfast_core import arena, manifest
from holdfast_core.manifest import Entry, SlotManifest
from holdfast_core.timeline import Copy


def map_file(path: Path) -> memoryview:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0))


def content(rank: int, step: int, size: int) -> bytes:
    return random.Random(f"{rank}/{step}").randbytes(size)


def entries(size: int) -> tuple[Entry, ...]:
    first = size // 3
    return manifest.lay_out(
        [Entry("model.weight", "uint8", (first,), 0, first), Entry("rng", "bytes", (size - first,), 0, size - first)]
    )


def seal_content(buf: memoryview, index: int, rank: int, world: int, step: int, attempt: int, size: int) -> int:
    header = arena.read_header(buf)
    placed = entries(size)
    blank = SlotManifest(step, attempt, rank, world, placed, {"at": step})
    data = arena.begin(buf, header, index, blank.data_bytes)
    raw, at, done = content(rank, step, size), 0, []
    for entry in placed:
        data[entry.offset : entry.offset + entry.nbytes] = raw[at : at + entry.nbytes]
        at += entry.nbytes
        done.append(manifest.with_checksums(entry, data))
    dumped = manifest.dump(dataclasses.replace(blank, entries=tuple(done)))
    arena.seal(buf, header, index, step=step, attempt=attempt, data_bytes=blank.data_bytes, manifest=dumped)
    return blank.data_bytes


def read_content(path: str, index: int) -> tuple[Copy, bytes]:
    """A slot's step and its state, after checking all of it as a trainer would."""
    buf = map_file(Path(path))
    header = arena.read_header(buf)
    slot = arena.read_slot(buf, index)
    found = manifest.load(arena.slot_manifest(buf, header, slot))
    data = arena.slot_data(buf, header, slot)
    manifest.verify(found, data)
    return Copy(slot.step, slot.attempt), b"".join(bytes(manifest.entry_data(data, e)) for e in found.entries)


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    """Flip a bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))
