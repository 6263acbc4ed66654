"""The state of a `kinds.Job` as short digests by path: a resume that went wrong names what, and from which step it is."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy
import torch

from trainer.kinds import Job

Leaves = dict[str, str]


def leaves(job: Job, ckpt: Any) -> Leaves:
    """Everything that the run depends on. Plain values are read from `ckpt`, which may have replaced them."""
    found: Leaves = {}
    for name, target in job.given.items():
        _walk(_state(name, target, ckpt), name, found)
    found["rng.python"] = _digest(repr(random.getstate()).encode())
    _walk([list(numpy.random.get_state()), torch.get_rng_state()], "rng", found)
    return found


def _state(name: str, target: Any, ckpt: Any) -> Any:
    if isinstance(target, torch.Generator):
        return target.get_state()
    if hasattr(target, "state_dict"):
        return target.state_dict()
    return ckpt[name]


def _walk(value: Any, path: str, found: Leaves) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _walk(inner, f"{path}.{key}", found)
        found[f"{path}.keys"] = repr(list(value))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _walk(inner, f"{path}.{index}", found)
        found[f"{path}.length"] = f"{type(value).__name__} {len(value)}"
    else:
        found[path] = _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        flat = value.detach().resolve_conj().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return f"{value.dtype} {list(value.shape)} {_digest(raw)}"
    if isinstance(value, numpy.ndarray | numpy.generic):
        return f"{value.dtype} {value.shape} {_digest(value.tobytes())}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(map(repr, value))}"
    return f"{type(value).__name__} {value!r}"


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def difference(found: Leaves, step: int, reference: list[Leaves]) -> str:
    """What is wrong with a state that should be that of `step`; empty if nothing is."""
    expected = reference[step]
    wrong = [path for path in {**expected, **found} if expected.get(path) != found.get(path)]
    notes = []
    for path in wrong[:4]:
        others = [s for s, held in enumerate(reference) if held.get(path) == found.get(path)]
        origin = f" (that of step {others})" if others else ""
        notes.append(f"{path} is {found.get(path)}{origin}, not {expected.get(path)}")
    return f"{len(wrong)} of {len(expected)} leaves: " + "; ".join(notes) if wrong else ""
