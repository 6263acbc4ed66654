"""Importing what Holdfast does not depend on, and taking off the wrappers that these libraries put around things."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch


def require(module: str, package: str = "") -> Any:
    """The imported module; raises ImportError that says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        problem = f"holdfast.integrations needs {name!r} for this: pip install {name} ({error})"
        raise ImportError(problem) from error


def bare_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer in wrappers such as Accelerate's or Lightning's: hooks of the wrapper would never be called."""
    while not type(optimizer).__module__.startswith("torch.optim"):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer) or inner is optimizer:
            break
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"a {type(optimizer).__qualname__} is not a torch optimizer")
    return optimizer


class Late:
    """Something that exists only after the restore. Its state is kept until then, and is read live afterwards."""

    def __init__(self) -> None:
        self._target: Any = None
        self._waiting: Any = None

    def arrive(self, target: Any) -> None:
        """Here it is: give it the state that was restored, if there is one."""
        self._target = target
        if self._waiting is not None and target is not None:
            target.load_state_dict(self._waiting)
        self._waiting = None

    def state_dict(self) -> Any:
        """The state of the target; None before it exists, or if there is none."""
        return None if self._target is None else self._target.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Keep it for the target."""
        self._waiting = state
