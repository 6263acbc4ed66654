"""How a run is to be done."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Context:
    """`scale` shrinks the states (1: the sizes that the figures are about), `samples` is how many a median is made of,
    `peers` whether they run too."""

    scale: float = 1.0
    samples: int = 5
    peers: bool = True

    def sized(self, nbytes: int) -> int:
        """A size in this run."""
        return max(MIB, int(nbytes * self.scale))

    def only(self, peers: tuple[str, ...]) -> tuple[str, ...]:
        """The peers of this run."""
        return peers if self.peers else ()
