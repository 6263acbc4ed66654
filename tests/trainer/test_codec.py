"""The codec: what goes in comes out, type for type and bit for bit, and what can't is refused by name."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy
import pytest
import torch
from holdfast._state import codec
from holdfast.errors import UnsupportedValue
from holdfast_core.manifest import CorruptShard
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.same import bits, same

pytestmark = pytest.mark.torch

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bit pattern, NaNs with payloads included; for bool the two that exist."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


tensors = st.builds(
    random_tensor,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.integers(0, 2**31),
)
arrays = st.builds(
    lambda kind, shape, seed: numpy.random.default_rng(seed).integers(0, 2, shape).astype(kind),
    st.sampled_from(["?", "<i4", ">i8", "<f8", ">f4", "<c16", "<M8[ns]", "<U3", "S5"]),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.integers(0, 2**31),
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 3000), 1 << 3000)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary(max_size=64)
    | st.binary(max_size=8).map(bytearray)
    | st.sampled_from([torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1)])
    | tensors
    | arrays
    | arrays.filter(lambda a: a.size == 1).map(lambda a: a.reshape(-1)[0])
)
keys = st.text(max_size=5) | st.just("!") | st.integers(-5, 5)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


def round_trip(value: Any) -> Any:
    """Through JSON text and separate leaves, as a slot does it."""
    encoder = codec.Encoder()
    tree = json.loads(json.dumps(encoder.encode(value, "x"), allow_nan=False))
    keys = [s.key for s in encoder.specs]
    assert len(set(keys)) == len(keys)
    leaves = [leaf.clone() if isinstance(leaf, torch.Tensor) else bytes(leaf) for leaf in encoder.leaves]
    return codec.decode(tree, leaves)


@settings(max_examples=150)
@given(values)
def test_round_trip(value: Any) -> None:
    assert same(round_trip(value), value)


class Colour(int):
    pass


def itself() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"a": [1, {"b": object()}]}, "x.a.1.b"),
        ({"f": lambda: 1}, "x.f"),
        ({(1, 2): 3}, r"x: dict key \(1, 2\)"),
        ({True: 3}, "x: dict key True"),
        ([Colour(3)], "x.0"),
        (defaultdict(list), "x: a collections.defaultdict"),
        (numpy.array([object()]), "x: NumPy dtype object"),
        (torch.zeros(2).to_sparse(), "x: layout"),
        (torch.empty(2, device="meta"), "x: a meta tensor"),
        (itself(), "nested deeper"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(value: Any, key: str) -> None:
    with pytest.raises(UnsupportedValue, match=key):
        codec.Encoder().encode(value, "x")
    assert issubclass(UnsupportedValue, TypeError)


def test_one_memory_is_stored_once() -> None:
    shared = torch.randn(4, 4)
    state = {"a": shared, "b": shared.view(4, 4), "row": shared[0], "t": shared.t()}
    encoder = codec.Encoder()
    tree = encoder.encode(state, "x")
    assert len(encoder.leaves) == 3
    decoded = codec.decode(tree, [leaf.clone() for leaf in encoder.leaves if isinstance(leaf, torch.Tensor)])
    assert decoded["a"] is decoded["b"]
    assert bits(decoded["t"]) == bits(shared.t().contiguous())


def test_views_that_only_look_different_keep_their_values() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    state = {"conj": z.conj(), "neg": z.conj().imag, "expanded": torch.randn(1, 3).expand(4, 3), "plain": z}
    assert same(round_trip(state), {k: v.resolve_conj().resolve_neg().contiguous() for k, v in state.items()})


def test_metadata_of_module_states_survives() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    again = round_trip(state)
    assert type(again) is OrderedDict
    assert again._metadata == state._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "tree",
    [
        {"!": "no such tag"}, {"!": "tensor", "e": 5}, {"!": "tensor"}, {"!": "bytes", "e": 0}, {"!": "dtype", "v": "load"},
        {"!": "device", "v": "nowhere"}, {"!": "int", "v": "zz"}, {"!": "dict", "v": [1]}, {"!": "float", "v": "00"},
        {"!": "ndarray", "e": 1, "t": "|O", "s": [1]}, {"!": "ndarray", "e": 1, "t": "<f8", "s": [9]}, {"!": ["tuple"]},
    ],
)  # fmt: skip
def test_a_tree_that_nobody_wrote_is_corrupt_not_executed(tree: Any) -> None:
    with pytest.raises(CorruptShard):
        codec.decode(tree, [torch.zeros(2), b"12345678"])
