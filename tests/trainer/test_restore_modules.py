"""Modules are restored in place, whatever way they load in; and not at all if anything differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.errors import StateMismatch

from trainer.same import bits, same
from trainer.test_checkpointer import load, save

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
