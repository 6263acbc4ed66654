"""A lane: the copies of one snapshot that are needed at the same moment, for example all tensors that one optimizer changes.

Any number of threads may work in a lane at once: each claims the next copy. A fence is therefore never an idle wait: the thread
that must have the lane done does what is left of it itself. When the last copy is done, the tensors' version counters tell
whether somebody changed one of them under the copy.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from holdfast_core.checksum import CHUNK
from holdfast_core.fastcopy import Batch
from holdfast_core.manifest import Entry

from .._state.codec import dtype_of
from .team import Fork

_IN_FLIGHT_SECONDS = 30.0  # copies of at most CHUNK bytes that other threads have claimed: milliseconds, if nothing hangs
_version = attrgetter("_version")


@dataclass(frozen=True)
class Item:
    """A tensor in host memory, where it goes, and the place of its first checksum."""

    leaf: torch.Tensor
    entry: Entry
    first_sum: int


class Lane:
    """Reused from snapshot to snapshot: `begin`, then `work` by anybody, then `settle` by who needs it done."""

    def __init__(self, items: Sequence[Item], sums: array[int]) -> None:
        self.items = items
        self._leaves = [i.leaf for i in items]
        self._strided = [i for i in items if i.entry.nbytes and not i.leaf.is_contiguous()]
        work, places = _copies(items)
        self.batch = Batch(work, sums, places)
        self.nbytes = sum(i.entry.nbytes for i in items)
        self._lock = threading.Lock()
        self._prepared = self.settled = True
        self._versions: list[int] = []
        self.problem = ""
        self.untrusted = -1  # index of the item that was changed under the copy

    def versions(self) -> list[int]:
        """The version counter of each tensor; it counts every change in place that torch knows of."""
        return [*map(_version, self._leaves)]

    def begin(self, watched: bool) -> None:
        """Start anew: the tensors are now what is to be copied. Nobody may work in the lane.

        `watched`: others may run before the lane is settled, so whether they changed a tensor is checked.
        """
        self._versions = self.versions() if watched else []
        self.batch.reset()
        self._prepared, self.settled = not self._strided, False
        self.problem, self.untrusted = "", -1

    def work(self, area: torch.Tensor, stop: array[int], fork: Fork | None = None) -> None:
        """Take part until nothing is left to claim, with a team of threads if one is given. `area` is the slot's data area."""
        if not self._prepared:
            self._prepare(area)
        if fork is None:
            self.batch.run(area.data_ptr(), stop)
        else:
            self.batch.run_in(fork, area.data_ptr(), stop)

    def _prepare(self, area: torch.Tensor) -> None:
        """What is not contiguous goes through torch; the batch then only sums it up."""
        with self._lock:
            if self._prepared:
                return
            with torch.no_grad():
                for item in self._strided:
                    place_of(area, item.entry).copy_(item.leaf)
            self._prepared = True

    def settle(self, area: torch.Tensor, stop: array[int], held: Callable[[Lane], str] | None = None) -> None:
        """Return when the lane is done: from here on its tensors may change. What went wrong is in `problem`.

        `held` looks at the lane once more before that.
        """
        if self.settled:
            return
        self.work(area, stop)
        deadline = time.monotonic() + _IN_FLIGHT_SECONDS
        while not self.batch.finished() and not self.problem and not stop[0]:
            if time.monotonic() > deadline:
                self.problem = f"a copy thread did not finish within {_IN_FLIGHT_SECONDS:.0f} s"
            time.sleep(0.00005)
        with self._lock:
            if not self.settled:
                self._check()
                if held is not None and not self.problem:
                    self.problem = held(self)
                self.settled = True

    def _check(self) -> None:
        now = self.versions() if self._versions else []
        if now != self._versions and not self.problem:
            self.untrusted = next(i for i, (a, b) in enumerate(zip(self._versions, now, strict=True)) if a != b)
            self.problem = changed(self.items[self.untrusted].entry.key)


def changed(key: str) -> str:
    """Why a snapshot is dropped whose tensor `key` was changed under the copy."""
    return (
        f"changed: {key} was changed while it was being copied; call ckpt.fence() before you change it by hand "
        "(from now on it is copied before snapshot() returns)"
    )


def place_of(area: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The entry's place in a slot, as a tensor of its type and shape."""
    return area[entry.offset : entry.offset + entry.nbytes].view(dtype_of(entry.dtype)).view(entry.shape)


def _copies(items: Sequence[Item]) -> tuple[list[tuple[int, int, int]], list[int]]:
    work, places = [], []
    for item in items:
        entry, source = item.entry, item.leaf.data_ptr() if item.leaf.is_contiguous() else 0
        for number, at in enumerate(range(0, entry.nbytes, CHUNK)):
            work.append((entry.offset + at, source and source + at, min(CHUNK, entry.nbytes - at)))
            places.append(item.first_sum + number)
    return work, places
