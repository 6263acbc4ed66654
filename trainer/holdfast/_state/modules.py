"""Which tensors of a module may be written in place at a restore, and what its load_state_dict has to do besides.

torch's own load_state_dict copies tensor by tensor into the live ones. Where that is all that it would do, the bytes can be put
there at once. A module class that loads in its own way, or that has hooks which may see or change a state dict, gets what it
would get from torch: a state dict with tensors of its own, for itself and for all modules below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from holdfast_core.manifest import Entry

from ..errors import StateMismatch
from . import codec, shards
from .placing import entry_of

_EXTRA = "_extra_state"
_METHODS = ("state_dict", "_save_to_state_dict", "_load_from_state_dict")
_TORCHS = "torch.nn.modules."
_FSDP2 = "torch.distributed.fsdp._fully_shard"  # its hooks only make sure that the parameters are the sharded ones
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


@dataclass
class View:
    """What was found in a module tree. `tensors`: by state dict key, those that may be written in place."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    extra: set[str] = field(default_factory=set)  # keys of extra states
    foreign: bool = False  # some module loads in its own way
    called: bool = False  # some hook expects that load_state_dict is called

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do when all `tensors` have their bytes."""
        return not (self.foreign or self.called or self.extra)


def view(root: torch.nn.Module) -> View:
    """Look at a module and all below it."""
    found = _view(root)
    if not found.called:
        return found
    root.state_dict()  # lets the hooks put things in order first: FSDP2 reshards
    return _view(root)


def _view(root: torch.nn.Module) -> View:
    found = View()
    if _is_torchs(root, "load_state_dict"):
        _walk(root, "", found)
    else:
        found.foreign = True
    return found


def _walk(module: torch.nn.Module, prefix: str, found: View) -> None:
    if not all(_is_torchs(module, name) for name in _METHODS) or not all(_is_fsdp2(h) for h in _hooks(module)):
        found.foreign = True
        return
    found.called |= bool(module._load_state_dict_post_hooks) or any(True for _ in _hooks(module))
    if type(module).set_extra_state is not torch.nn.Module.set_extra_state:
        found.extra.add(prefix + _EXTRA)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found.tensors[prefix + name] = parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            found.tensors[prefix + name] = buffer
    for name, child in module._modules.items():
        if child is not None:
            _walk(child, f"{prefix}{name}.", found)


def _is_torchs(module: torch.nn.Module, method: str) -> bool:
    bound = getattr(module, method)
    return str(getattr(getattr(bound, "__func__", None), "__module__", "")).startswith(_TORCHS)


def _hooks(module: torch.nn.Module) -> Iterator[Any]:
    for name in _HOOKS:
        yield from getattr(module, name).values()


def _is_fsdp2(hook: Any) -> bool:
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith(_FSDP2)


def check(kind: str, found: View, saved: Mapping[str, Any], entries: tuple[Entry, ...]) -> None:
    """Compare with the snapshot: nodes by state dict key. Raises StateMismatch that names all differences."""
    problems = []
    if not found.foreign:  # else only the module itself knows which keys it takes
        expected = found.tensors.keys() | found.extra
        problems += _listed("the snapshot has no", [k for k in [*found.tensors, *sorted(found.extra)] if k not in saved])
        problems += _listed("the live model has no", [k for k in saved if k not in expected])
    for key, live in found.tensors.items():
        problem = _difference(key, live, saved[key], entries) if key in saved else None
        if problem:
            problems.append(problem)
    if problems:
        raise StateMismatch(f"the snapshot does not fit the live {kind}: " + "; ".join(problems))


def check_dtype(kind: str, key: str, live: torch.Tensor, node: Any, entries: tuple[Entry, ...]) -> None:
    """Refuse what torch would cast in silence, for a tensor that the module itself will load; raises StateMismatch."""
    if (
        isinstance(node, dict)
        and node.get(codec.TAG) == "tensor"
        and entry_of(entries, node).dtype != codec.dtype_name(live.dtype)
    ):
        saved = entry_of(entries, node).dtype
        raise StateMismatch(f"{kind}: {key} is {live.dtype} in the live model, the snapshot has torch.{saved}")


def _listed(what: str, keys: list[str]) -> list[str]:
    return [f"{what} {', '.join(keys)}"] if keys else []


def _difference(key: str, live: torch.Tensor, node: Any, entries: tuple[Entry, ...]) -> str | None:
    if not isinstance(node, dict) or node.get(codec.TAG) != "tensor":
        return f"{key} is no tensor in the snapshot"
    entry = entry_of(entries, node)
    shape = shards.Layout.from_json(node[codec.LAYOUT]).shape if codec.LAYOUT in node else entry.shape
    if tuple(live.shape) != shape:
        return f"size mismatch for {key}: {list(live.shape)} in the live model, the snapshot has {list(shape)}"
    if live.dtype is not codec.dtype_of(entry.dtype):
        return f"{key} is {live.dtype} in the live model, the snapshot has torch.{entry.dtype}"
    if live.is_meta:
        return f"{key} is on the meta device: materialise the model before the restore"
    return None
