"""The random number generators that training draws from, as codec values. They are restored last, after everything else."""

from __future__ import annotations

import random
import struct
import sys
from importlib import import_module
from typing import Any

import torch

_WORDS = struct.Struct("<625I")  # Mersenne Twister: 624 words and the position


def capture() -> dict[str, Any]:
    """States of Python, torch on the CPU, every CUDA device if CUDA is in use, and NumPy if it is imported."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": _WORDS.pack(*words), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # asking an unused CUDA would initialise it
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        state["numpy"] = import_module("numpy.random").get_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put them back. CUDA devices that this process does not have are left out."""
    python = state["python"]
    random.setstate((python["version"], _WORDS.unpack(python["words"]), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import_module("numpy.random").set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value, device)
