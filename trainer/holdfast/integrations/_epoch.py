"""The start of an epoch, to be able to go back to it: a shuffled loader draws its order there.

To go on in the middle of an epoch, a loop puts back the random states that its epoch began with, skips the batches it has seen,
and then puts back those of the snapshot. Both are kept in each snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .._state import rng

State = dict[str, Any]


def capture(loaders: Iterable[Any]) -> State:
    """The random states now: the global ones, and those of the loaders' own generators."""
    return {"rng": rng.capture(), "generators": [g.get_state() for g in _generators(loaders)]}


def restore(state: State, loaders: Iterable[Any]) -> None:
    """Put them back."""
    for generator, saved in zip(_generators(loaders), state["generators"], strict=False):
        generator.set_state(saved)
    rng.restore(state["rng"])


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """Each one once, in an order that depends on the loaders' types alone."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        samplers = list(_samplers(loader))
        for owner in (loader, *samplers):
            for name in ("generator", "synchronized_generator"):
                generator = getattr(owner, name, None)
                if isinstance(generator, torch.Generator):
                    found.setdefault(id(generator), generator)
    return list(found.values())


def _samplers(loader: Any) -> Iterable[Any]:
    """Sampler and batch sampler, and what they wrap (Accelerate and Lightning shard a batch sampler by wrapping it)."""
    waiting = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    seen: set[int] = set()
    while waiting:
        sampler = waiting.pop(0)
        if sampler is None or id(sampler) in seen:
            continue
        seen.add(id(sampler))
        yield sampler
        waiting += [getattr(sampler, "batch_sampler", None), getattr(sampler, "sampler", None)]
