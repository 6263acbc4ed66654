"""The debug mode `HOLDFAST_VERIFY=1`: finds tensors that are changed behind torch's back, for example through `.data`, which no
version counter sees.

All sources are summed up when snapshot() is called, and again before their fence lets anybody change them; both must be what
was copied. It costs two more passes over the state in each step, and the seal waits for the fence.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from holdfast_core.checksum import CHUNK
from holdfast_core.fastcopy import Batch

from .lane import Item, Lane


class Verifier:
    """Remembers what the sources of each lane were at the call of snapshot()."""

    def __init__(self) -> None:
        self._before: dict[int, array[int]] = {}

    def note(self, lanes: Iterable[Lane]) -> None:
        """Take down the sources now."""
        self._before = {id(lane): _sums(lane.items) for lane in lanes}

    def compare(self, lane: Lane) -> str:
        """The same for a lane that is not copied again because it is frozen."""
        self._before = {id(lane): _sums(lane.items)}
        return self.look(lane)

    def look(self, lane: Lane) -> str:
        """What is wrong with a lane whose copies are done; empty if nothing."""
        before, now = self._before.get(id(lane)), _sums(lane.items)
        at = 0
        for item in lane.items:
            count = -(-item.entry.nbytes // CHUNK)
            copied = lane.batch.sums[item.first_sum : item.first_sum + count]
            if before is not None and not (copied == before[at : at + count] == now[at : at + count]):
                return (
                    f"verify: {item.entry.key} changed after snapshot() without the knowledge of torch (through .data?); "
                    "change it before snapshot(), or call ckpt.fence() first and change it with an ordinary operation"
                )
            at += count
        return ""


def _sums(items: Iterable[Item]) -> array[int]:
    """A checksum for each chunk of each tensor, in order."""
    held = [(i.leaf if i.leaf.is_contiguous() else i.leaf.contiguous(), i.entry.nbytes) for i in items]
    starts = [(leaf.data_ptr() + at, min(CHUNK, n - at)) for leaf, n in held for at in range(0, n, CHUNK)]
    batch = Batch([(address, 0, n) for address, n in starts])
    batch.run(0)
    return batch.sums
