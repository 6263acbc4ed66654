"""What the user's objects hold, cheap to ask again: a view of an object says which tensors it has now (`live`) without building
a state dict, so that ten thousand of them are compared with those of the last step in a few milliseconds.

A view has a part that stays the same as long as its tensors are the same objects (`fixed`), and a part that is encoded anew for
each snapshot (`changing`: learning rates, counters, values). What a view cannot see through is all `changing`, and right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import is_
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from .._state.codec import TAG, Encoder
from .._state.sources import ModuleSource, OptimizerSource, Source

_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
_OWN_WAY = ("state_dict", "_save_to_state_dict", "get_extra_state")
_NO_TENSORS: list[torch.Tensor] = []


class View(Protocol):
    """One captured object. `optimizer` is the one whose steps change what it holds, if that is so."""

    optimizer: Optimizer | None

    def live(self) -> list[torch.Tensor]:
        """The tensors it holds now, always in the same order; the same objects mean that `fixed` would be the same."""

    def fixed(self, encoder: Encoder, name: str) -> Any:
        """JSON values that stay, its tensors as leaves; kept by the caller and given to `tree`."""

    def tree(self, fixed: Any, encoder: Encoder, name: str) -> list[bytes]:
        """The whole object as JSON, in parts to be joined, with what changes encoded now."""


def view(source: Source) -> View:
    """The best view of a source. It must be asked for anew when tensors come or go."""
    if type(source) is ModuleSource and ModuleView.sees(source.target):
        return ModuleView(source.target)
    if type(source) is OptimizerSource and OptimizerView.sees(source.target):
        return OptimizerView(source.target)
    return AnyView(source)


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class AnyView:
    """Anything: its state is taken and encoded in every step."""

    optimizer: Optimizer | None = None

    def __init__(self, source: Source) -> None:
        self._source = source

    def live(self) -> list[torch.Tensor]:
        """None that it vouches for."""
        return _NO_TENSORS

    def fixed(self, encoder: Encoder, name: str) -> Any:
        """Nothing."""
        return None

    def tree(self, fixed: Any, encoder: Encoder, name: str) -> list[bytes]:
        """All of it."""
        return [dumps(encoder.encode(self._source.state(), name))]


class ModuleView:
    """A module whose state dict is just its parameters and buffers."""

    optimizer: Optimizer | None = None

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._tables = [t for m in self._modules for t in (m._parameters, m._buffers)]
        self._children = self._descendants()
        self._sharded = [m for m in self._modules if m._state_dict_pre_hooks]

    @staticmethod
    def sees(module: torch.nn.Module) -> bool:
        """Whether no module in it has a state dict of its own making."""
        base = torch.nn.Module
        return not any(
            any(getattr(type(m), name, None) is not getattr(base, name) for name in _OWN_WAY)
            or any(not _is_fsdp(hook) for hooks in _HOOKS for hook in getattr(m, hooks, {}).values())
            for m in module.modules()
        )

    def _descendants(self) -> list[torch.nn.Module | None]:
        return [child for m in self._modules for child in m._modules.values()]

    def live(self) -> list[torch.Tensor]:
        """Parameters and buffers, module by module; of a module that was rebuilt, none."""
        for module in self._sharded:
            for hook in module._state_dict_pre_hooks.values():
                hook(module, "", False)  # the shards take the place of gathered parameters
        if not same_objects(self._descendants(), self._children):
            return _NO_TENSORS
        return [t for table in self._tables for t in table.values() if t is not None]

    def fixed(self, encoder: Encoder, name: str) -> Any:
        """The state dict."""
        return dumps(encoder.encode(self.module.state_dict(), name))

    def tree(self, fixed: Any, encoder: Encoder, name: str) -> list[bytes]:
        """The same as before: only bytes change."""
        return [fixed]


class OptimizerView:
    """An optimizer whose state is a dict of tensors for each parameter; its groups' settings change, for example `lr`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Optimizer | None = optimizer
        self._target = optimizer

    @staticmethod
    def sees(optimizer: Optimizer) -> bool:
        """Whether its state dict is torch's usual one."""
        usual = type(optimizer).state_dict is Optimizer.state_dict
        hooked = any(getattr(optimizer, f"_optimizer_state_dict_{when}_hooks", None) for when in ("pre", "post"))
        plain = all(type(key) is str and key != TAG for group in optimizer.param_groups for key in group)
        return usual and plain and not hooked and all(_only_tensors(state) for state in optimizer.state.values())

    def live(self) -> list[torch.Tensor]:
        """The parameters, then their states (if these are no tensors any more, they are not the same objects either)."""
        parameters = [p for group in self._target.param_groups for p in group["params"]]
        return parameters + [v for state in self._target.state.values() for v in state.values()]

    def fixed(self, encoder: Encoder, name: str) -> Any:
        """The state as JSON, and each group's list of parameter numbers."""
        state = self._target.state_dict()
        numbers = [dumps(encoder.encode(g["params"], "")) for g in state["param_groups"]]
        return dumps(encoder.encode(state["state"], f"{name}.state")), numbers

    def tree(self, fixed: Any, encoder: Encoder, name: str) -> list[bytes]:
        """State as before, settings as they are now."""
        state, numbers = fixed
        groups: list[bytes] = []
        for index, (group, params) in enumerate(zip(self._target.param_groups, numbers, strict=True)):
            settings = {k: v for k, v in group.items() if k != "params"}
            encoded = dumps(encoder.encode(settings, f"{name}.param_groups.{index}"))
            groups += [b"," if index else b"", encoded[:-1], b"," if settings else b"", b'"params":', params, b"}"]
        return [b'{"state":', state, b',"param_groups":[', *groups, b"]}"]


def _is_fsdp(hook: object) -> bool:
    """FSDP2's hooks change nothing but which tensors stand in the module, and `live` calls them itself."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.fsdp")


def _only_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(v, torch.Tensor) for v in state.values())


def same_objects(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether two lists hold the same objects in the same order; both are walked in C."""
    return len(one) == len(other) and all(map(is_, one, other))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that has the bytes: of a DTensor this rank's shard."""
    shard = getattr(tensor, "_local_tensor", None)
    return shard if isinstance(shard, torch.Tensor) else tensor
