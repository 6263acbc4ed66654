"""What changed between two copies of an image: a piece that is as it was is not sent again, of others the difference is.

The codes are linear: the parity of the differences is the difference of the parities. Chunks with equal checksums at equal
places are taken for candidates, and believed only when both copies in memory are equal byte for byte. What is sent is verified
first, in both copies, since nobody can check a difference later.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .holdings import ImageBytes, in_both, read, verify
from .wire import PIECE


class Changes:
    """From one copy of an image to another. What one of them does not have, because it is shorter, counts as zeros. When a
    CorruptShard was raised, `suspect` is the copy that it is about."""

    def __init__(self, base: ImageBytes, new: ImageBytes) -> None:
        self._base, self._new, self.suspect = base, new, new.copy
        self._starts = new.chunks["start"]
        self._differs = np.concatenate(([0], np.cumsum(~in_both(new.chunks, base.chunks))))
        self._scratch = memoryview(bytearray(PIECE))

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, memoryview | None]]:
        """Size and difference (None: none) of each PIECE, valid until the next one. Raises CorruptShard, ArenaError."""
        for at in range(start, end, PIECE):
            until = min(end, at + PIECE)
            yield until - at, None if self._is_same(at, until) else self._difference(at, until)

    def require_unchanged(self) -> None:
        """Raise ArenaError unless both copies are still there."""
        self._base.require_unchanged()
        self._new.require_unchanged()

    def _is_same(self, at: int, until: int) -> bool:
        if until > min(len(self._new.view), len(self._base.view)):
            return False
        first, last = np.searchsorted(self._starts, at, "right") - 1, np.searchsorted(self._starts, until, "left")
        if self._differs[last] != self._differs[first]:
            return False
        new, base = (np.frombuffer(read(image, at, until), np.uint8) for image in (self._new, self._base))
        return bool(np.array_equal(new, base))

    def _difference(self, at: int, until: int) -> memoryview:
        out = self._scratch[: until - at]
        out[:] = bytes(len(out))
        target = np.frombuffer(out, np.uint8)
        for image in (self._new, self._base):
            end = min(until, len(image.view))
            if end > at:
                self.suspect = image.copy
                verify(image, at, end)
                np.bitwise_xor(target[: end - at], np.frombuffer(read(image, at, end), np.uint8), out=target[: end - at])
        return out
