"""Where state comes from and goes back to: the objects that the user handed to the Checkpointer, by name.

Each source knows how to give its state as codec values and how to take it back in place, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..errors import StateMismatch
from .codec import Place, keep_on_cpu, to_device

RESERVED = frozenset({"rng"})


class Source(Protocol):
    """One captured object. `place` says where its restored tensors have to lie before `load` gets them."""

    place: Place

    def state(self) -> Any:
        """Its state now, as codec values."""

    def load(self, state: Any) -> None:
        """Take a state back."""


class Stateful:
    """Anything with state_dict and load_state_dict."""

    place: Place = staticmethod(to_device)

    def __init__(self, target: Any) -> None:
        self.target = target

    def state(self) -> Any:
        return self.target.state_dict()

    def load(self, state: Any) -> None:
        self.target.load_state_dict(state)


class ModuleSource(Stateful):
    """A module. Wrappers of DDP and torch.compile are taken off, so that the names are the model's own."""

    place: Place = staticmethod(keep_on_cpu)  # load_state_dict copies into the live tensors

    def __init__(self, target: torch.nn.Module) -> None:
        super().__init__(_unwrap(target))

    def load(self, state: Any) -> None:
        """Copy in place. Another dtype would be cast in silence, so it is refused."""
        for key, live in self.target.state_dict().items():
            saved = state.get(key)
            if isinstance(live, torch.Tensor) and isinstance(saved, torch.Tensor) and live.dtype != saved.dtype:
                raise StateMismatch(f"{key} is {live.dtype} in the live model, the snapshot has {saved.dtype}")
        super().load(state)


class OptimizerSource(Stateful):
    """An optimizer. torch casts its state to the parameters' dtype at load, which is undone: float32 moments of bfloat16
    parameters come back as they were."""

    place: Place = staticmethod(keep_on_cpu)  # load_state_dict moves them to their parameters

    def load(self, state: Any) -> None:
        super().load(state)
        saved_ids = [p for group in state["param_groups"] for p in group["params"]]
        live = [p for group in self.target.param_groups for p in group["params"]]
        for saved_id, parameter in zip(saved_ids, live, strict=True):
            _undo_casts(self.target.state.get(parameter, {}), state["state"].get(saved_id, {}))


class GeneratorSource:
    """A torch.Generator."""

    place: Place = staticmethod(keep_on_cpu)

    def __init__(self, target: torch.Generator) -> None:
        self.target = target

    def state(self) -> Any:
        return self.target.get_state()

    def load(self, state: Any) -> None:
        self.target.set_state(state)


class ValueSource:
    """A plain value. Dicts, lists and tensors are restored in place; others are replaced: read them from the Checkpointer."""

    place: Place = staticmethod(to_device)

    def __init__(self, value: Any) -> None:
        self.value = value

    def state(self) -> Any:
        return self.value

    def load(self, state: Any) -> None:
        if type(self.value) in (dict, OrderedDict) and isinstance(state, dict):
            self.value.clear()
            self.value.update(state)
        elif type(self.value) is list and type(state) is list:
            self.value[:] = state
        elif isinstance(self.value, torch.Tensor) and isinstance(state, torch.Tensor):
            _copy_in_place(self.value, state)
        else:
            self.value = state


def make(name: str, target: Any) -> Source:
    """The source for an object; raises TypeError that says what it lacks."""
    if name in RESERVED:
        raise TypeError(f"{name!r} is a name that Holdfast uses itself: give this object another one")
    if isinstance(target, torch.nn.Module):
        return ModuleSource(target)
    if isinstance(target, torch.optim.Optimizer):
        return OptimizerSource(target)
    if callable(getattr(target, "state_dict", None)) and callable(getattr(target, "load_state_dict", None)):
        return Stateful(target)
    if isinstance(target, torch.Generator):
        return GeneratorSource(target)
    if isinstance(target, torch.utils.data.DataLoader):
        raise TypeError(
            f"{name}: this DataLoader cannot tell its position; pass its sampler with state_dict() and load_state_dict(), "
            "or torchdata's StatefulDataLoader"
        )
    return ValueSource(target)


def _unwrap(module: torch.nn.Module) -> torch.nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            inner = module.module
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner


def _undo_casts(live: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    for key, value in saved.items():
        now = live.get(key)
        if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
            live[key] = value.to(now.device)


def _copy_in_place(live: torch.Tensor, saved: torch.Tensor) -> None:
    if live.shape != saved.shape or live.dtype != saved.dtype:
        raise StateMismatch(f"{live.dtype}{list(live.shape)} cannot take {saved.dtype}{list(saved.shape)} in place")
    with torch.no_grad():
        live.copy_(saved)
