"""State as plain JSON plus leaves of raw bytes, without pickle: a snapshot can never run code when it is loaded.

`encode` turns a tree of Python values into JSON values, in which tensors, byte strings and NumPy arrays stand as numbered
references to leaves; `decode` is its exact inverse, type for type and bit for bit. What has no exact inverse is refused
with the full key of the value. `capture` writes the leaves into a slot, `load` brings them back; of a DTensor the leaf is this
rank's shard (`shards`).
"""

from __future__ import annotations

import math
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from holdfast_core.manifest import UNIQUE, CorruptShard

from ..errors import UnsupportedValue
from . import shards

LAYOUT = "g"  # of a tensor node: the `shards.Layout` of a DTensor, whose leaf is this rank's shard
STRIDE = "s"  # of a tensor node: its strides, if they are not the usual ones and leave no gaps
TAG = "!"  # marks an object that is not a plain dict; a dict that has this key itself is written as pairs
BYTES = "bytes"
_MAX_DEPTH = 200
_PLAIN_INT_BITS = 1024
_NUMPY_KINDS = "biufcmMSU"

Leaf = torch.Tensor | bytes | bytearray
Leaves = Sequence[Leaf] | Mapping[int, Leaf]
Whole = tuple[tuple[int, ...], tuple[int, ...]]  # of a shard: shape of the whole tensor, and where in it the shard starts


@dataclass(frozen=True)
class LeafSpec:
    """A leaf before it has a place in a slot: name, type, shape and size in bytes.

    `global_shape` and `global_offset` place a shard in its whole tensor; None for what is not sharded. `placement` is one of
    `holdfast_core.manifest`'s.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    global_shape: tuple[int, ...] | None = None
    global_offset: tuple[int, ...] | None = None
    placement: str = UNIQUE


class Encoder:
    """Collects the leaves of one snapshot. Tensors that are the same view of the same memory become one leaf."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.specs: list[LeafSpec] = []
        self._seen: dict[tuple[Any, ...], int] = {}
        self._keys: set[str] = set()

    def encode(self, value: Any, key: str, depth: int = 0) -> Any:
        """JSON values for `value`; raises UnsupportedValue that names the key."""
        if depth > _MAX_DEPTH:
            raise UnsupportedValue(f"{key}: nested deeper than {_MAX_DEPTH} levels (does it contain itself?)")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if value.bit_length() <= _PLAIN_INT_BITS else {TAG: "int", "v": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {TAG: "float", "v": struct.pack(">d", value).hex()}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, key)
        container = self._container(value, key, depth)
        return container if container is not None else self._special(value, key)

    def _container(self, value: Any, key: str, depth: int) -> Any:
        kind = type(value)
        if kind is list:
            return self._items(value, key, depth)
        if kind in _SEQUENCES:
            return {TAG: _SEQUENCES[kind], "v": self._items(value, key, depth)}
        if kind in _DICTS:
            return self._dict(value, key, depth)
        return None

    def _items(self, values: Iterable[Any], key: str, depth: int) -> list[Any]:
        return [self.encode(v, f"{key}.{i}", depth + 1) for i, v in enumerate(values)]

    def _dict(self, value: dict[Any, Any], key: str, depth: int) -> Any:
        kind, metadata = type(value), getattr(value, "_metadata", None)
        for k in value:
            if type(k) not in (str, int):
                raise UnsupportedValue(f"{key}: dict key {k!r} is a {type(k).__name__}; only str and int can be stored")
        if kind is dict and TAG not in value and all(type(k) is str for k in value):
            return {k: self.encode(v, f"{key}.{k}", depth + 1) for k, v in value.items()}
        pairs = [[k, self.encode(v, f"{key}.{k}", depth + 1)] for k, v in value.items()]
        node = {TAG: _DICTS[kind], "v": pairs}
        if metadata is not None:  # versions of modules: load_state_dict of later torch versions looks at them
            node["m"] = self.encode(metadata, f"{key}._metadata", depth + 1)
        return node

    def _special(self, value: Any, key: str) -> Any:
        kind = type(value)
        if kind in (bytes, bytearray):
            return {TAG: kind.__name__, "e": self._leaf(value, key, BYTES, (len(value),), len(value))}
        if kind is complex:
            return {TAG: "complex", "v": struct.pack(">dd", value.real, value.imag).hex()}
        if kind is torch.Size:
            return {TAG: "size", "v": list(value)}
        if kind is torch.dtype:
            return {TAG: "dtype", "v": dtype_name(value)}
        if kind is torch.device:
            return {TAG: "device", "v": str(value)}
        numpy = sys.modules.get("numpy")  # whoever holds NumPy values has imported it
        if numpy is not None and (kind is numpy.ndarray or isinstance(value, numpy.generic)):
            return self._numpy(value, key, kind is numpy.ndarray)
        raise UnsupportedValue(
            f"{key}: a {kind.__module__}.{kind.__qualname__} cannot be stored without pickle; give it as plain values, "
            "tensors or bytes, or as an object with state_dict() and load_state_dict()"
        )

    def _numpy(self, value: Any, key: str, array: bool) -> Any:
        if value.dtype.kind not in _NUMPY_KINDS:
            raise UnsupportedValue(f"{key}: NumPy dtype {value.dtype} cannot be stored without pickle")
        raw = value.tobytes()
        index = self._leaf(raw, key, BYTES, (len(raw),), len(raw))
        return {TAG: "ndarray" if array else "npscalar", "e": index, "t": value.dtype.str, "s": list(value.shape)}

    def _tensor(self, value: torch.Tensor, key: str) -> Any:
        node: dict[str, Any] = {TAG: "tensor"}
        whole: Whole | None = None
        if shards.is_sharded(value):
            node[LAYOUT] = shards.layout_of(value).to_json()
            whole = tuple(value.shape), shards.global_offset(value)
            value = shards.local_part(value)
        problem = _tensor_problem(value)
        if problem:
            raise UnsupportedValue(f"{key}: {problem}")
        value = value.detach().resolve_conj().resolve_neg()
        index = self._alias(value)
        if index is None:
            nbytes = value.numel() * value.element_size()
            index = self._leaf(value, key, dtype_name(value.dtype), tuple(value.shape), nbytes, whole)
            if value.numel():
                self._seen[_identity(value)] = index
        node["e"] = index
        if not value.is_contiguous() and torch.empty_like(value, device="meta").stride() == value.stride():
            node[STRIDE] = list(value.stride())  # dense in another order: kernels that walk memory must find it again
        if value.device.type != "cpu":
            node["d"] = value.device.type
        return node

    def _alias(self, value: torch.Tensor) -> int | None:
        return self._seen.get(_identity(value)) if value.numel() else None

    def _leaf(self, value: Leaf, key: str, dtype: str, shape: tuple[int, ...], nbytes: int, whole: Whole | None = None) -> int:
        unique, n = key, 1
        while unique in self._keys:  # {1: a, "1": b} have the same path
            n += 1
            unique = f"{key}#{n}"
        self._keys.add(unique)
        self.leaves.append(value)
        self.specs.append(LeafSpec(unique, dtype, shape, nbytes, *(whole or ())))
        return len(self.leaves) - 1


_SEQUENCES: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_DICTS: dict[type, str] = {dict: "dict", OrderedDict: "odict", Counter: "counter"}
PAIRS = frozenset(_DICTS.values())  # tags of nodes whose items are pairs of key and value


def _identity(value: torch.Tensor) -> tuple[Any, ...]:
    return (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def _tensor_problem(value: torch.Tensor) -> str | None:
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"tensors of type {type(value).__name__} are not supported; store their local part as a plain tensor"
    if value.layout is not torch.strided:
        return f"layout {value.layout} is not supported; store its indices and values"
    if value.is_meta:
        return "a meta tensor has no bytes; materialise the module first"
    if value.is_quantized:
        return "a quantized tensor is not supported; store its int_repr(), scale and zero point"
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name without the prefix, for example `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@cache
def dtype_of(name: str) -> torch.dtype:
    """The inverse of `dtype_name`; raises CorruptShard for anything that is not a dtype."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CorruptShard(f"unknown dtype {name!r}: was the snapshot written by a newer torch?")
    return dtype


def decode(tree: Any, leaves: Leaves) -> Any:
    """The value that was encoded; raises CorruptShard if the tree is not one that `encode` writes.

    Tensors of `leaves` are handed out as they are, wherever they lie, and references to one leaf give the same object. Their
    bytes may follow later; those of byte strings are needed now.
    """
    try:
        return _decode(tree, leaves)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise CorruptShard(f"bad state tree: {type(error).__name__}: {error}") from error


def _decode(node: Any, leaves: Leaves) -> Any:
    if isinstance(node, list):
        return [_decode(n, leaves) for n in node]
    if not isinstance(node, dict):
        return node
    if TAG not in node:
        return {k: _decode(v, leaves) for k, v in node.items()}
    tag = node[TAG]
    if tag == "tensor":
        return _decode_tensor(node, leaves)
    if tag in _BUILD_DICT:
        result = _BUILD_DICT[tag]((k, _decode(v, leaves)) for k, v in node["v"])
        if "m" in node:
            result._metadata = _decode(node["m"], leaves)
        return result
    if tag in _BUILD_SEQUENCE:
        return _BUILD_SEQUENCE[tag](_decode(v, leaves) for v in node["v"])
    return _BUILD_SPECIAL[tag](node, leaves)


def _decode_tensor(node: dict[str, Any], leaves: Leaves) -> torch.Tensor:
    leaf = leaves[node["e"]]
    if not isinstance(leaf, torch.Tensor):
        raise TypeError(f"leaf {node['e']} is not a tensor")
    return leaf


def _raw(node: dict[str, Any], leaves: Leaves) -> bytes | bytearray:
    leaf: Leaf = leaves[node["e"]]
    if isinstance(leaf, torch.Tensor):
        raise TypeError(f"leaf {node['e']} is a tensor")
    return leaf


def _numpy(node: dict[str, Any], leaves: Leaves) -> Any:
    numpy = import_module("numpy")
    dtype = numpy.dtype(str(node["t"]))
    if dtype.kind not in _NUMPY_KINDS:
        raise ValueError(f"NumPy dtype {dtype}")
    raw = _raw(node, leaves)
    array = numpy.frombuffer(raw if isinstance(raw, bytearray) else bytearray(raw), dtype=dtype).reshape(node["s"])
    return array if node[TAG] == "ndarray" else array[()]


def _device(node: dict[str, Any], leaves: Leaves) -> torch.device:
    try:
        return torch.device(node["v"])
    except RuntimeError as error:
        raise ValueError(f"device {node['v']!r}") from error


_BUILD_SEQUENCE: dict[str, Callable[[Iterable[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_BUILD_DICT: dict[str, Callable[[Iterable[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "odict": OrderedDict,
    "counter": lambda pairs: Counter(dict(pairs)),
}
_BUILD_SPECIAL: dict[str, Callable[[dict[str, Any], Leaves], Any]] = {
    "int": lambda node, _: int(node["v"], 16),
    "float": lambda node, _: struct.unpack(">d", bytes.fromhex(node["v"]))[0],
    "complex": lambda node, _: complex(*struct.unpack(">dd", bytes.fromhex(node["v"]))),
    "size": lambda node, _: torch.Size(node["v"]),
    "dtype": lambda node, _: dtype_of(node["v"]),
    "device": _device,
    "bytes": lambda node, leaves: bytes(_raw(node, leaves)),
    "bytearray": lambda node, leaves: bytearray(_raw(node, leaves)),
    "ndarray": _numpy,
    "npscalar": _numpy,
}
