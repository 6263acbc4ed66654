"""What tests of capture look at: the bytes that stand in sealed slots, and weights whose value tells their step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast
import torch
from holdfast._state.mapping import open_arena
from holdfast_core import arena, manifest
from holdfast_core.arena import SlotState
from torch import nn

MEGABYTE = 1 << 20


@contextmanager
def checkpointer(**given: Any) -> Iterator[holdfast.Checkpointer]:
    ckpt = holdfast.Checkpointer(**given)
    try:
        assert ckpt.restore() == -1
        yield ckpt
    finally:
        ckpt.close()


def sealed(folder: Path) -> dict[int, dict[str, bytes]]:
    """The bytes of each entry of each sealed slot, by step."""
    found = {}
    for path in folder.glob("*.arena"):
        mapped = open_arena(path)
        for slot in (s for s in mapped.slots() if s.state is SlotState.SEALED):
            data = arena.slot_data(mapped.buf, mapped.header, slot)
            document = manifest.load(arena.slot_manifest(mapped.buf, mapped.header, slot))
            manifest.verify(document, data)
            found[slot.step] = {e.key: bytes(manifest.entry_data(data, e)) for e in document.entries}
    return found


def constant(value: float, size: int = MEGABYTE // 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module with one weight of 1 MiB that is `value` everywhere; each step with gradient -1 adds one."""
    module = nn.Linear(size, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module, torch.optim.SGD(module.parameters(), lr=1.0)


def add_one(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in module.parameters():
        p.grad = torch.full_like(p, -1.0)
    optimizer.step()


def value_of(raw: bytes) -> list[float]:
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).unique().tolist()
