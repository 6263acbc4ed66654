"""A rank's shard as a safetensors file (https://github.com/huggingface/safetensors, format section of its README).

Eight bytes of header length (little-endian), a JSON header, then the tensors' bytes without holes. The slot manifest
stands in `__metadata__`, so any safetensors reader sees the tensors, and Holdfast gets its slot back byte for byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from . import manifest as slot_manifest
from .manifest import CorruptShard, Entry, SlotManifest, entry_data

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_METADATA_KEY = "holdfast"
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32",
    "float32": "F32", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip


def header(manifest: SlotManifest) -> bytes:
    """Length and JSON header of the file for this manifest. Types that the format lacks are stored as bytes (U8)."""
    table: dict[str, object] = {"__metadata__": {_METADATA_KEY: slot_manifest.dump(manifest).decode()}}
    offset = 0
    for entry in manifest.entries:
        known = _DTYPES.get(entry.dtype)
        table[entry.key] = {
            "dtype": known or "U8",
            "shape": list(entry.shape) if known else [entry.nbytes],
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return _LENGTH.pack(len(raw)) + raw


def parts(manifest: SlotManifest, data: memoryview) -> Iterator[bytes | memoryview]:
    """The whole file piece by piece: the header, then each entry straight out of the slot."""
    yield header(manifest)
    for entry in manifest.entries:
        yield entry_data(data, entry)


def header_length(first8: bytes) -> int:
    """Size of the JSON header that follows the first eight bytes; raises CorruptShard."""
    if len(first8) != _LENGTH.size:
        raise CorruptShard("safetensors: file is cut short before its header")
    length = int(_LENGTH.unpack(first8)[0])
    if not 2 <= length <= _MAX_HEADER:
        raise CorruptShard(f"safetensors: header length {length} is impossible")
    return length


def parse_header(raw: bytes) -> tuple[SlotManifest, tuple[tuple[Entry, int, int], ...]]:
    """The slot manifest, and for each entry its start and end behind the header; raises CorruptShard."""
    try:
        table = json.loads(raw)
        manifest = slot_manifest.load(table["__metadata__"][_METADATA_KEY].encode())
        spans = tuple((e, *_span(table[e.key]["data_offsets"], e)) for e in manifest.entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptShard(f"safetensors: bad header: {error}") from error
    return manifest, spans


def _span(offsets: list[int], entry: Entry) -> tuple[int, int]:
    start, end = int(offsets[0]), int(offsets[1])
    if start < 0 or end - start != entry.nbytes:
        raise CorruptShard(f"safetensors: {entry.key} has {end - start} bytes, expected {entry.nbytes}")
    return start, end
