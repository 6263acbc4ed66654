"""Where state comes from and goes back to: the objects that the user handed to the Checkpointer, by name.

Each source knows how to give its state as codec values, which of its tensors may be written in place at a restore, and how to
take the rest back, bit for bit. `modules` looks into modules, `placing` uses what `live` tells.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from holdfast_core.manifest import CorruptShard, Entry

from ..errors import StateMismatch
from . import modules
from .codec import LAYOUT, PAIRS, TAG, dtype_name
from .placing import Near, entry_of, match

RESERVED = frozenset({"rng", "replicas"})


class Source(Protocol):
    """One captured object. `follow`: its restored tensors go back to the kind of device that they came from."""

    follow: bool

    def state(self) -> Any:
        """Its state now, as codec values."""

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """What stands where in the encoded `tree`: tensors in the result are written in place. None: nothing may be.

        Called before anything is touched; raises StateMismatch if the snapshot does not fit.
        """

    def load(self, state: Any) -> None:
        """Take a state back, whose tensors are the ones of `live` where these fitted, and else are new."""


class Stateful:
    """Anything with state_dict and load_state_dict, which may do what they like: it gets tensors of its own."""

    follow = True

    def __init__(self, target: Any) -> None:
        self.target = target

    def state(self) -> Any:
        return self.target.state_dict()

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """Nothing, but where it has DTensors now: their mesh is needed."""
        sharded = any(LAYOUT in node for node, _ in match(tree))
        return _near(self.target.state_dict()) if sharded else None

    def load(self, state: Any) -> None:
        self.target.load_state_dict(state)


class LoaderSource(Stateful):
    """A DataLoader that knows its position, for example torchdata's StatefulDataLoader.

    Its iterators draw from generators when they are made. So the one that goes on is made here, where the position is restored:
    the generators are put back afterwards, as if it had existed all the time. The next `iter()` returns it; one from before the
    restore starts at the beginning. Worker processes are seeded anew: what a dataset draws in them is the same again only if
    the dataset keeps its generator in its own `state_dict`.
    """

    def state(self) -> Any:
        """With its own generator, if it was given one: its state dict lacks what was drawn after the order of an epoch."""
        generator = self._generator()
        return {"position": self.target.state_dict(), "generator": None if generator is None else generator.get_state()}

    def load(self, state: Any) -> None:
        super().load(state["position"])
        self.target.state_dict()  # makes the iterator
        generator = self._generator()
        if generator is not None and state["generator"] is not None:
            generator.set_state(state["generator"])

    def _generator(self) -> torch.Generator | None:
        found = getattr(self.target, "generator", None)
        return found if isinstance(found, torch.Generator) else None


class ModuleSource(Stateful):
    """A module. Wrappers of DDP and torch.compile are taken off, so that the names are the model's own."""

    follow = False  # what is not written in place is copied by load_state_dict

    def __init__(self, target: torch.nn.Module) -> None:
        super().__init__(_unwrap(target))
        self._in_place = False

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """Its parameters and buffers. Another dtype would be cast in silence, so it is refused."""
        found, saved = modules.view(self.target), _items(tree)
        kind = type(self.target).__name__
        modules.check(kind, found, saved, entries)
        self._in_place = found.complete
        if not found.foreign:
            return found.tensors
        others = {k: v for k, v in self.target.state_dict().items() if k not in found.tensors}
        tensors = {k: v for k, v in others.items() if isinstance(v, torch.Tensor) and k in saved}
        for key, tensor in tensors.items():
            modules.check_dtype(kind, key, tensor, saved[key], entries)
        return {**_near(others), **found.tensors}

    def load(self, state: Any) -> None:
        """For what was written in place already, torch's copy of a tensor onto itself does nothing."""
        if not self._in_place:
            super().load(state)


class OptimizerSource(Stateful):
    """An optimizer. State that exists is written in place, other state is handed over as it was: torch would cast it to the
    dtype of the parameters, and float32 moments of bfloat16 parameters would not come back."""

    def __init__(self, target: torch.optim.Optimizer) -> None:
        super().__init__(target)

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """The state of each parameter, by the number that the parameter has in the snapshot."""
        own = _loads_as_torch(self.target)
        groups = self.target.param_groups
        saved = _saved_groups(tree)
        if [len(ids) for ids in saved] != [len(group["params"]) for group in groups]:
            if not own:
                return None  # its own load_state_dict may know what to do
            raise StateMismatch(
                f"the live optimizer has parameter groups of {[len(g['params']) for g in groups]} parameters, "
                f"the snapshot of {[len(ids) for ids in saved]}"
            )
        parameters = chain.from_iterable(group["params"] for group in groups)
        numbered = zip(chain.from_iterable(saved), parameters, strict=True)
        return {"state": {n: Near(self.target.state.get(p) if own else None, p) for n, p in numbered}}

    def load(self, state: Any) -> None:
        """torch loads the groups; the state of each parameter is then put in place without a cast."""
        if not _loads_as_torch(self.target):
            super().load(state)
            for number, parameter in self._numbered(state):
                _undo_casts(self.target.state.get(parameter, {}), state["state"].get(number, {}))
            return
        super().load({**state, "state": {}})
        parameters = dict(self._numbered(state))
        placed: defaultdict[Any, Any] = defaultdict(dict)
        for number, values in state["state"].items():
            parameter = parameters.get(number)
            placed[number if parameter is None else parameter] = _on_device(values, parameter)
        self.target.__setstate__({"state": placed, "param_groups": self.target.param_groups})

    def _numbered(self, state: Any) -> list[tuple[Any, Any]]:
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        return list(zip(numbers, (p for g in self.target.param_groups for p in g["params"]), strict=True))


class GeneratorSource:
    """A torch.Generator."""

    follow = False

    def __init__(self, target: torch.Generator) -> None:
        self.target = target

    def state(self) -> Any:
        return self.target.get_state()

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """Nothing: its state is a copy."""

    def load(self, state: Any) -> None:
        self.target.set_state(state)


class ValueSource:
    """A plain value. Dicts, lists and tensors are restored in place; others are replaced: read them from the Checkpointer."""

    follow = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def state(self) -> Any:
        return self.value

    def live(self, tree: Any, entries: tuple[Entry, ...]) -> Any:
        """All of it: tensors at any depth keep their place if dtype and shape are still the same."""
        saved_tensor = isinstance(tree, dict) and tree.get(TAG) == "tensor"
        if isinstance(self.value, torch.Tensor) and saved_tensor and LAYOUT not in tree:
            _check_same(self.value, entry_of(entries, tree))
        return self.value

    def load(self, state: Any) -> None:
        if type(self.value) in (dict, OrderedDict) and isinstance(state, dict):
            self.value.clear()
            self.value.update(state)
        elif type(self.value) is list and type(state) is list:
            self.value[:] = state
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
        return LoaderSource(target) if isinstance(target, torch.utils.data.DataLoader) else Stateful(target)
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


def _near(value: Any) -> Any:
    """The same structure, in which no tensor may be written to: it only tells device and mesh."""
    if isinstance(value, torch.Tensor):
        return Near(None, value)
    if isinstance(value, Mapping):
        return {k: _near(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_near(v) for v in value]
    return None


def _items(tree: Any) -> dict[str, Any]:
    """Keys and nodes of an encoded dict; raises CorruptShard."""
    try:
        return dict(tree["v"]) if tree.get(TAG) in PAIRS else dict(tree)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptShard(f"bad state tree: {type(error).__name__}: {error}") from error


def _saved_groups(tree: Any) -> list[list[Any]]:
    try:
        return [list(_items(group)["params"]) for group in _items(tree)["param_groups"]]
    except (KeyError, TypeError) as error:
        raise CorruptShard(f"bad state tree: {type(error).__name__}: {error}") from error


def _loads_as_torch(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its load_state_dict does nothing but cast tensors and put them into `state`."""
    plain = torch.optim.Optimizer
    names = ("state_dict", "load_state_dict", "_process_value_according_to_param_policy")
    hooks = ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
    overridden = any(n in vars(optimizer) or getattr(type(optimizer), n) is not getattr(plain, n) for n in names)
    return not overridden and not any(getattr(optimizer, f"_optimizer_{hook}_hooks") for hook in hooks)


def _on_device(values: Any, parameter: torch.Tensor | None) -> Any:
    """State of a parameter that has moved from the CPU to a device since. Counters stay where they were, as torch has it."""
    if parameter is None or parameter.is_cpu or not isinstance(values, dict):
        return values
    return {k: v.to(parameter.device) if isinstance(v, torch.Tensor) and v.dim() else v for k, v in values.items()}


def _undo_casts(live: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    for key, value in saved.items():
        now = live.get(key)
        if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
            live[key] = value.to(now.device)


def _check_same(live: torch.Tensor, saved: Entry) -> None:
    if tuple(live.shape) != saved.shape or dtype_name(live.dtype) != saved.dtype:
        raise StateMismatch(f"{live.dtype}{list(live.shape)} cannot take torch.{saved.dtype}{list(saved.shape)} in place")
