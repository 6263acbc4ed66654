"""The slot manifest: what a rank's snapshot consists of, tensor by tensor, with checksums.

It is written by the trainer behind the data of a slot, and travels in the metadata of the rank's safetensors file, so that
each copy of a shard describes and proves itself. `tree` is the state as plain JSON, in which tensors and raw bytes stand
as references to entries (the trainer's codec defines it; nobody else needs to look inside).

As JSON the checksums of all entries are one string, `sums`: what changes with each snapshot is then apart from what stays
(`entries`), and ten thousand tensors cost no more to write down than one (`assemble`).
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .arena import align
from .checksum import ALGORITHM, CHUNK, checksums, first_mismatch

REPLICATED = "replicated"  # the same bytes on every rank of the data-parallel group
UNIQUE = "unique"  # this rank's own


class CorruptShard(ValueError):
    """Bytes that do not match their checksum; the text names the entry."""


@dataclass(frozen=True)
class Entry:
    """One tensor or byte string. `offset` and `nbytes` are bytes in the slot's data area.

    `dtype` is torch's name without the prefix (`float32`, `bfloat16`), or `bytes`. `global_shape` and `global_offset` place
    a shard in the whole tensor (for what is not sharded: the shape itself, and zeros).
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksums: tuple[int, ...] = ()
    placement: str = UNIQUE
    global_shape: tuple[int, ...] | None = None
    global_offset: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SlotManifest:
    """A rank's snapshot of one step."""

    step: int
    attempt: int
    rank: int
    world_size: int
    entries: tuple[Entry, ...]
    tree: Any
    algorithm: str = ALGORITHM

    @property
    def data_bytes(self) -> int:
        """Size of the data area, in bytes."""
        return max((e.offset + e.nbytes for e in self.entries), default=0)


def lay_out(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Give every entry its aligned offset, in the order given."""
    placed, offset = [], 0
    for entry in entries:
        placed.append(replace(entry, offset=offset))
        offset = align(offset + entry.nbytes)
    return tuple(placed)


def entry_data(data: memoryview, entry: Entry) -> memoryview:
    """An entry's bytes in the slot's data area; raises CorruptShard if it lies outside."""
    if entry.offset < 0 or entry.nbytes < 0 or entry.offset + entry.nbytes > data.nbytes:
        raise CorruptShard(f"{entry.key}: lies outside the shard's {data.nbytes} bytes")
    return data[entry.offset : entry.offset + entry.nbytes]


def with_checksums(entry: Entry, data: memoryview) -> Entry:
    """The entry with the checksums of what now stands in the data area."""
    return replace(entry, checksums=checksums(entry_data(data, entry)))


def verify(manifest: SlotManifest, data: memoryview) -> None:
    """Compare every entry with its checksums; raises CorruptShard that names the first bad one."""
    if manifest.algorithm != ALGORITHM:
        raise CorruptShard(f"checksum algorithm {manifest.algorithm!r}, this build knows {ALGORITHM!r}")
    for entry in manifest.entries:
        bad = first_mismatch(entry_data(data, entry), entry.checksums)
        if bad is not None:
            raise CorruptShard(f"{entry.key}: checksum mismatch in chunk {bad} of step {manifest.step}")


def dump(manifest: SlotManifest) -> bytes:
    """Compact JSON."""
    sums = array("I", [c for e in manifest.entries for c in e.checksums])
    tree = json.dumps(manifest.tree, separators=(",", ":"), allow_nan=False).encode()
    return assemble(
        step=manifest.step, attempt=manifest.attempt, rank=manifest.rank, world_size=manifest.world_size,
        algorithm=manifest.algorithm, sums=pack_sums(sums), entries=describe(manifest.entries), tree=tree,
    )  # fmt: skip


def assemble(
    *, step: int, attempt: int, rank: int, world_size: int, sums: str, entries: bytes, tree: bytes, algorithm: str = ALGORITHM
) -> bytes:
    """The same as `dump`, from parts that are JSON already (`entries`: the list's inside, from `describe`)."""
    head = f'{{"step":{step},"attempt":{attempt},"rank":{rank},"world_size":{world_size},'
    head += f'"algorithm":{json.dumps(algorithm)},"sums":"{sums}","entries":['
    return b"".join((head.encode(), entries, b'],"tree":', tree, b"}"))


def describe(entries: Sequence[Entry]) -> bytes:
    """JSON objects of the entries without their checksums, separated by commas. What has its usual value is left out."""
    return ",".join(json.dumps(_plain(e), separators=(",", ":")) for e in entries).encode()


def _plain(entry: Entry) -> dict[str, Any]:
    node = {"key": entry.key, "dtype": entry.dtype, "shape": entry.shape, "offset": entry.offset, "nbytes": entry.nbytes}
    if entry.placement != UNIQUE:
        node["placement"] = entry.placement
    if entry.global_shape is not None:
        node["global_shape"] = entry.global_shape
    if entry.global_offset is not None:
        node["global_offset"] = entry.global_offset
    return node


def pack_sums(sums: array[int]) -> str:
    """Checksums in the entries' order as hexadecimal digits, little-endian, eight a checksum."""
    if sys.byteorder == "big":
        sums = array("I", sums)
        sums.byteswap()
    return sums.tobytes().hex()


def chunk_count(nbytes: int) -> int:
    """How many checksums an entry of this size has."""
    return -(-nbytes // CHUNK)


def load(raw: bytes) -> SlotManifest:
    """Parse; raises CorruptShard."""
    try:
        node = json.loads(raw)
        step, attempt, rank, world_size = (_number(node[name]) for name in ("step", "attempt", "rank", "world_size"))
        entries = tuple(_entries(node["entries"], _unpack_sums(node["sums"])))
        return SlotManifest(step, attempt, rank, world_size, entries, node["tree"], _text(node["algorithm"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptShard(f"manifest: {type(error).__name__}: {error}") from error


def _entries(nodes: list[dict[str, Any]], sums: array[int]) -> Iterator[Entry]:
    """Deal out the checksums. None at all is a manifest without them, which `verify` then refuses."""
    at = 0
    for node in nodes:
        end = at + chunk_count(_number(node["nbytes"])) if sums else 0
        yield _entry(node, tuple(sums[at:end]))
        at = end
    if at != len(sums):
        raise ValueError(f"{len(sums)} checksums for {at} chunks")


def _unpack_sums(text: str) -> array[int]:
    sums = array("I")
    sums.frombytes(bytes.fromhex(text))
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


def _entry(node: dict[str, Any], sums: tuple[int, ...]) -> Entry:
    placement, whole, start = node.get("placement", UNIQUE), node.get("global_shape"), node.get("global_offset")
    return Entry(
        _text(node["key"]), _text(node["dtype"]), _shape(node["shape"]), _number(node["offset"]), _number(node["nbytes"]), sums,
        _text(placement), None if whole is None else _shape(whole), None if start is None else _shape(start),
    )  # fmt: skip


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    for number in shape:
        if type(number) is not int:
            raise TypeError(f"expected whole numbers, got {value!r:.60}")
    return shape


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, got {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected text, got {value!r:.60}")
    return value
