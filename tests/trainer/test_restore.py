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
from holdfast._home.directory import DirectoryHome
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
from trainer.same import same
from trainer.test_checkpointer import checkpointer, load, save
from trainer.test_codec import values

pytestmark = pytest.mark.torch
nn = torch.nn


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
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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


def test_bytes_that_change_while_they_are_loaded_end_the_run(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pass finds wrong is refused, whatever the live tensors hold by then; here there is no older snapshot."""
    save(model=nn.Linear(4, 4))
    mapped, slot = newest(local)
    locate = DirectoryHome.locate

    def lying(self: DirectoryHome) -> Any:
        found = locate(self)
        mapped.buf[mapped.header.region(slot.index) + 5] ^= 1
        return found

    monkeypatch.setattr(DirectoryHome, "locate", lying)
    with pytest.raises(CorruptShard, match=r"half of it is loaded: model\.weight: checksum mismatch in chunk 0"):
        load(model=nn.Linear(4, 4))


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

def measured(source, slot, *args, **kwargs):
    load.verify(source, slot, rank=0, world_size=1)  # touches the arena's pages, so that they count already
    open("/proc/self/clear_refs", "w").write("5")
    before = kib("VmRSS")
    result = restore(source, slot, *args, **kwargs)
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
