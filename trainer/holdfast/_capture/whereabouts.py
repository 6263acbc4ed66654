"""Where tensors lie in memory, asked again for each snapshot.

Ten thousand tensors are thirty thousand small objects, each a wait for memory if they are visited one after the other: that was
three quarters of a plan's time. They are brought into the cache a batch at a time, side by side (10,000 tensors: 3.5 to 2 ms).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from holdfast_core import fastcopy

from .views import local, same_objects

_BATCH = 128  # tensors: some 70 KiB of objects
# Of shapes only the hashes are kept: so many tuples would keep the garbage collector busy.
_address, _shape, _dense = torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.is_contiguous

Noted = tuple[list[int], list[int], list[bool]]


class Whereabouts:
    """Of `turned`, which scripts may turn round in place, how they lie is noted too. The tensors and their memory must be kept
    alive by the caller."""

    def __init__(self, turned: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
        each = [*turned, *others]
        self._turned = len(turned)
        self._each = each
        self._sharded = not same_objects([*map(local, each)], each)
        self._objects = array("Q", [] if self._sharded else [a for t in each for a in _objects(t)])
        self._noted = self._now()

    def same(self) -> bool:
        """Whether all of them are where they were."""
        return self._now() == self._noted

    def _now(self) -> Noted:
        each = [*map(local, self._each)] if self._sharded else self._each
        addresses: list[int] = []
        shapes: list[int] = []
        dense: list[bool] = []
        per_tensor = len(self._objects) // len(each) if each else 0
        for at in range(0, len(each), _BATCH):
            part = each[at : at + _BATCH]
            fastcopy.touch(self._objects, per_tensor * at, per_tensor * len(part))
            addresses += map(_address, part)
            turned = part[: max(0, self._turned - at)]
            shapes += map(hash, map(_shape, turned))
            dense += map(_dense, turned)
        return addresses, shapes, dense


def _objects(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Addresses of a tensor's Python object, its C++ object and its storage: what lies between its name and its memory."""
    own = id(tensor)  # stands in for what a later torch may not tell any more
    return own, getattr(tensor, "_cdata", own), getattr(tensor.untyped_storage(), "_cdata", own)
