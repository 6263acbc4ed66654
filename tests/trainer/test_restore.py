"""How state is put back: into the live tensors where they are, in one pass, and nothing at all if it does not fit."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast._state import load as loading
from holdfast._state import transfer
from holdfast._state.mapping import Mapped, open_arena
from holdfast.errors import StateMismatch
from holdfast_core import arena, manifest
from holdfast_core.arena import Slot, SlotState
from holdfast_core.checksum import CHUNK, checksums
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.fake_sidecar import python_env
from trainer.same import bits, same
from trainer.test_checkpointer import checkpointer, load, save
from trainer.test_codec import values

pytestmark = pytest.mark.torch
nn = torch.nn


class Turned(nn.Module):
    """Stores its weight transposed, in ways that only its own code undoes; 3 x 3, so that no shape would tell."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(9.0).reshape(3, 3) + value)
        self.inner = nn.Linear(2, 2)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.detach().t().contiguous()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t()
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Hooked(nn.Linear):
    """A hook halves at load, another one doubles when it is saved; the parameters of a child pass through them too."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.child = nn.Linear(2, 2)
        self.register_load_state_dict_pre_hook(self._halve)
        self.register_state_dict_post_hook(self._double)

    @staticmethod
    def _halve(module: nn.Module, state: Any, prefix: str, *rest: Any) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            state[key] = state[key] / 2

    @staticmethod
    def _double(module: nn.Module, state: Any, prefix: str, local: Any) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            state[key] = state[key] * 2


class Extra(nn.Linear):
    """Has state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.note: Any = "initial"

    def get_extra_state(self) -> Any:
        return {"note": self.note, "tensor": torch.tensor([1.0, 2.0])}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


class Told(nn.Linear):
    """Wants to know when it was loaded."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sums: list[float] = []
        self.register_load_state_dict_post_hook(lambda module, _: module.sums.append(float(module.weight.detach().sum())))


class Swapped(nn.Module):
    """Hands out its two weights under each other's names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        a, b = (kwargs["prefix"] + name for name in "ab")
        state[a], state[b] = state[b], state[a]
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        a, b = prefix + "a", prefix + "b"
        super()._load_from_state_dict({**state_dict, a: state_dict[b], b: state_dict[a]}, prefix, *rest)


@pytest.mark.parametrize("kind", [lambda: Turned(1.0), Hooked, Extra, Told, Swapped])
def test_modules_that_load_in_their_own_way(local: Path, kind: Callable[[], nn.Module]) -> None:
    def make(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 2), kind())

    saved, live = make(1), make(2)
    if isinstance(saved[1], Extra):
        saved[1].note = "kept"
    addresses = [p.data_ptr() for p in live.parameters()]
    save(model=saved)
    assert load(model=live) == 0
    assert same([p.detach() for p in live.parameters()], [p.detach() for p in saved.parameters()])
    assert [p.data_ptr() for p in live.parameters()] == addresses
    if isinstance(live[1], Extra):
        assert live[1].note == "kept"
    if isinstance(live[1], Told):
        assert live[1].sums == [float(saved[1].weight.detach().sum())], "told once, after the bytes were there"


def test_all_differences_are_named_and_nothing_is_touched(local: Path) -> None:
    saved = nn.ModuleDict({"same": nn.Linear(2, 2), "gone": nn.Linear(1, 1), "wide": nn.Linear(2, 3), "small": nn.Linear(1, 1)})
    first = torch.ones(3)
    save(first=first, model=saved)
    live = nn.ModuleDict(
        {"same": nn.Linear(2, 2), "new": nn.Linear(1, 1), "wide": nn.Linear(2, 4), "small": nn.Linear(1, 1).half()}
    )
    before = {k: bits(v) for k, v in live.state_dict().items()}
    first.zero_()
    with pytest.raises(StateMismatch) as caught:
        load(first=first, model=live)
    for text in (
        "the snapshot has no new.weight, new.bias", "the live model has no gone.weight, gone.bias",
        "size mismatch for wide.weight: [4, 2] in the live model, the snapshot has [3, 2]",
        "small.bias is torch.float16 in the live model, the snapshot has torch.float32",
    ):  # fmt: skip
        assert text in str(caught.value)
    assert {k: bits(v) for k, v in live.state_dict().items()} == before
    assert not first.any()


def test_a_model_that_is_not_materialised_says_so(local: Path) -> None:
    save(model=nn.Linear(2, 2))
    with pytest.raises(StateMismatch, match="weight is on the meta device: materialise the model"):
        load(model=nn.Linear(2, 2, device="meta"))


def tie(tied: bool, seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    if tied:
        model["head"].weight = model["embed"].weight
    return model


@pytest.mark.parametrize(("was", "now"), [(True, True), (True, False), (False, True), (False, False)])
def test_ties_that_came_or_went(local: Path, was: bool, now: bool) -> None:
    saved, live = tie(was, 1), tie(now, 2)
    save(model=saved)
    expected = tie(now, 2)
    expected.load_state_dict(saved.state_dict())  # torch's way: the last one written stays
    assert load(model=live) == 0
    assert same(dict(live.state_dict()), dict(expected.state_dict()))


@pytest.mark.slow  # torch.compile imports much
def test_wrapped_models_are_restored_in_place(local: Path) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    address = other.weight.data_ptr()
    save(model=torch.compile(model, backend="eager"))
    assert load(model=nn.DataParallel(other)) == 0
    assert other.weight.data_ptr() == address
    assert same(other.weight.detach(), model.weight.detach())


def test_tensors_of_plain_values_keep_their_place(local: Path) -> None:
    def make(value: float) -> dict[str, Any]:
        base = torch.full((4, 6), value)
        return {
            "deep": [{"t": torch.full((3,), value)}, (torch.full((2,), value),)],
            "strided": torch.full((6, 4), value).t(),
            "expanded": torch.full((1, 3), value).expand(5, 3),
            "row": base[1], "base": base, "empty": torch.empty(0, 3), "scalar": torch.tensor(value),
            "conj": torch.full((2,), complex(value, value)).conj(),
        }  # fmt: skip

    state = make(2.0)
    save(state=make(1.5))
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    deep, inner, base_address = state["deep"][0]["t"], state["deep"][1][0], state["base"].data_ptr()
    assert load(state=state) == 0
    assert all(state[k] is v for k, v in tensors.items())
    assert state["deep"][0]["t"] is deep
    assert state["deep"][1][0] is inner
    assert state["base"].data_ptr() == base_address
    expected = {k: v.resolve_conj() if isinstance(v, torch.Tensor) else v for k, v in make(1.5).items()}
    assert same({k: v.resolve_conj() if isinstance(v, torch.Tensor) else v for k, v in state.items()}, expected)


def test_a_value_of_another_shape_is_replaced_and_a_tensor_refused(local: Path) -> None:
    save(state={"t": torch.ones(3)}, alone=torch.ones(3))
    state = {"t": torch.zeros(4)}
    load(state=state)
    assert same(state["t"], torch.ones(3))
    with pytest.raises(StateMismatch, match=r"torch.float64\[3\] cannot take torch.float32\[3\] in place"):
        load(alone=torch.zeros(3, dtype=torch.float64))


def test_whoever_counts_changes_sees_one(local: Path) -> None:
    model = nn.Linear(2, 2)
    save(model=model)
    before = model.weight._version
    load(model=model)
    assert model.weight._version > before


def stepped(seed: int, make: Callable[[Any], torch.optim.Optimizer], times: int) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    params = [nn.Parameter(torch.randn(3, 2).to(torch.bfloat16)), nn.Parameter(torch.randn(4))]
    optimizer = make(params)
    for _ in range(times):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params, optimizer


class OwnWay(torch.optim.SGD):
    """Loads in its own way."""

    loaded = 0

    def load_state_dict(self, state_dict: Any) -> None:
        self.loaded += 1
        super().load_state_dict(state_dict)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: OwnWay(p, 0.1, momentum=0.9)])
@pytest.mark.parametrize("times", [0, 2], ids=["fresh", "with state"])
def test_state_of_an_optimizer(local: Path, kind: Callable[[Any], torch.optim.Optimizer], times: int) -> None:
    _, optimizer = stepped(1, kind, 3)
    params, other = stepped(2, kind, times)
    before = {id(p): dict(other.state[p]) for p in params if p in other.state}
    save(optimizer=optimizer)
    load(optimizer=other)
    assert same(other.state_dict(), optimizer.state_dict())
    if not isinstance(other, OwnWay):
        assert all(other.state[p][k] is v for p in params for k, v in before.get(id(p), {}).items()), "in place"
    else:
        assert other.loaded == 1


def test_an_optimizer_of_other_groups_is_refused(local: Path) -> None:
    parameter = torch.zeros(2)
    save(parameter=torch.ones(2), optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1))
    more = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    with pytest.raises(StateMismatch, match=r"parameter groups of \[2\] parameters, the snapshot of \[1\]"):
        load(parameter=parameter, optimizer=torch.optim.SGD(more, 0.1))
    assert not parameter.any()


def wiped(value: Any) -> Any:
    """The same structure with other bytes in its tensors."""
    if isinstance(value, torch.Tensor):
        value.untyped_storage().fill_(0)
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            wiped(inner)
    return value


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values, st.booleans())
def test_any_value_comes_back(local: Path, monkeypatch: pytest.MonkeyPatch, value: Any, in_place: bool) -> None:
    with tempfile.TemporaryDirectory(dir=local.parent) as folder:
        monkeypatch.setenv("HOLDFAST_DIR", folder)
        save(value={"v": value})
        live = {"v": wiped(copy.deepcopy(value)) if in_place else None}
        assert load(value=live) == 0
    assert same(live, {"v": value})


def newest(folder: Path) -> tuple[Mapped, Slot]:
    (path,) = folder.glob("*.arena")
    mapped = open_arena(path)
    return mapped, max((s for s in mapped.slots() if s.state is SlotState.SEALED), key=lambda s: s.step)


LIES: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "outside": lambda e: {"offset": 1 << 40},
    "before": lambda e: {"offset": -64},
    "too short for its shape": lambda e: {"shape": (*e.shape, 2)},
    "no dtype": lambda e: {"dtype": "load"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_found_before_anything_is_touched(local: Path, lie: str) -> None:
    first, second = torch.ones(5), torch.ones(7)
    save(first=first, second={"x": second})
    mapped, slot = newest(local)
    document = manifest.load(arena.slot_manifest(mapped.buf, mapped.header, slot))
    wrong = [dataclasses.replace(e, **LIES[lie](e)) if e.key == "second.x" else e for e in document.entries]
    _seal(mapped, slot, dataclasses.replace(document, entries=tuple(wrong)))
    first.zero_()
    with checkpointer(first=first, second={"x": torch.zeros(7)}) as ckpt, pytest.raises(CorruptShard):
        loading.restore(mapped, newest(local)[1], ckpt._sources, rank=0, world_size=1)
    assert not first.any()


@pytest.mark.parametrize("tree", [[], {"x": {"!": "tensor", "e": 99}}, {"x": {"!": "tensor", "e": -1}}, {"x": {"!": "tensor"}}])
def test_a_state_tree_that_lies(local: Path, tree: Any) -> None:
    save(x=torch.ones(2))
    mapped, slot = newest(local)
    document = manifest.load(arena.slot_manifest(mapped.buf, mapped.header, slot))
    _seal(mapped, slot, dataclasses.replace(document, tree=tree))
    with checkpointer(x=torch.zeros(2)) as ckpt, pytest.raises(CorruptShard):
        loading.restore(mapped, newest(local)[1], ckpt._sources, rank=0, world_size=1)


def _seal(mapped: Mapped, slot: Slot, document: SlotManifest) -> None:
    arena.seal(
        mapped.buf, mapped.header, slot.index,
        step=slot.step, attempt=slot.attempt, data_bytes=slot.data_bytes, manifest=manifest.dump(document), writer=slot.attempt,
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("sizes", [[], [1, 3], [CHUNK, CHUNK + 1, 3 * CHUNK - 7, 5], [100] * 40])
def test_the_pass_copies_and_names_the_wrong_chunk(threads: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(threads))
    source = torch.randint(0, 256, (sum(sizes) + 1,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    to, moves, at = torch.zeros_like(source), [], 0
    for index, size in enumerate(sizes):
        raw = memoryview(source[at : at + size].numpy())
        entry = Entry(f"e{index}", "uint8", (size,), at, size, checksums(raw))
        moves.append(transfer.Move(entry, source.data_ptr() + at, to.data_ptr() + at))
        at += size
    transfer.carry_out(moves)
    assert torch.equal(to[:at], source[:at])
    for index, size in enumerate(sizes[:3]):
        position = moves[index].entry.offset + size - 1
        source[position] ^= 4
        with pytest.raises(CorruptShard, match=f"^e{index}: checksum mismatch in chunk {(size - 1) // CHUNK}$"):
            transfer.carry_out(moves)
        source[position] ^= 4


RESTORE = """
import sys, torch, holdfast
from holdfast._state import load

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))

def model(value):
    return torch.nn.ParameterList([torch.nn.Parameter(torch.full((1 << 20,), value)) for _ in range(64)])

first = model(1.5)
ckpt = holdfast.Checkpointer(model=first)
ckpt.restore()
ckpt.snapshot(0)
ckpt.close()
del first, ckpt
live = model(0.0)
addresses = [p.data_ptr() for p in live]
restore, grown = load.restore, []

def measured(*args, **kwargs):  # the arena is mapped and was verified, so its pages count already
    open("/proc/self/clear_refs", "w").write("5")
    before = kib("VmRSS")
    result = restore(*args, **kwargs)
    grown.append(kib("VmHWM") - before)
    return result

load.restore = measured
assert holdfast.Checkpointer(model=live).restore() == 0
assert addresses == [p.data_ptr() for p in live]
assert all(bool((p == 1.5).all()) for p in live)
print(grown[0])
"""


@pytest.mark.slow
def test_no_second_copy_of_the_state_is_made(tmp_path: Path) -> None:
    """256 MiB come back with less than 64 MiB more than the process had: nothing of that size is held in between."""
    done = subprocess.run(
        [sys.executable, "-c", RESTORE], env=python_env(HOLDFAST_DIR=str(tmp_path / "d")),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10, f"{done.stdout.strip()} KiB"
