"""What lies where in a group: blocks of images, stripes, parity. Pure.

A member's image is its snapshot's bytes, padded with zeros to the longest of the group. It is cut into k = g - m blocks. A
stripe takes one block from each of k members; the other m members hold its parity, a row each. There are g stripes, and they
rotate like those of RAID-5: block d of member j lies in stripe (j - m - d) mod g at position d, and row r of stripe t lies with
member (t + r) mod g. So a member's blocks and the rows that it holds lie in g different stripes: who loses m members loses m
parts of each stripe, never more, and a stripe can be rebuilt while k of its k + m parts are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

PIECE = 512 << 10  # bytes that are sent and coded at a time: what is summed up stays in the L2 cache; smaller ones cost calls
ALIGN = 4096
MOST_MEMBERS = 255  # of a group: the codes count in GF(2^8)


@dataclass(frozen=True)
class Source:
    """One part of a stripe: block `index` of `member`'s image, or row `index` of the parity that it holds.

    `position` is its place in the codeword: 0..k-1 data, k..k+m-1 parity.
    """

    kind: Literal["data", "parity"]
    member: int
    index: int
    position: int


@dataclass(frozen=True)
class Layout:
    """Members and stripes are numbers from 0 to `members` - 1; `block` is in bytes, a multiple of ALIGN."""

    members: int
    parity: int
    block: int

    def __post_init__(self) -> None:
        if not 0 < self.parity < self.members <= MOST_MEMBERS:
            raise ValueError(f"{self.parity} of {self.members} members as parity: want 0 < parity < members <= {MOST_MEMBERS}")
        if self.block < ALIGN or self.block % ALIGN:
            raise ValueError(f"a block of {self.block} bytes is no multiple of {ALIGN}")

    @classmethod
    def of(cls, members: int, parity: int, lengths: Sequence[int]) -> Layout:
        """The layout with the smallest blocks for images of so many bytes, one length for each member; raises ValueError."""
        if len(lengths) != members or min(lengths, default=0) < 0:
            raise ValueError(f"{len(lengths)} lengths for {members} members: want one each, none below 0")
        data = max(1, members - parity)
        return cls(members, parity, max(ALIGN, _up(_up(max(lengths), data) // data, ALIGN)))

    @property
    def data(self) -> int:
        """k: the blocks of an image, and the members that contribute to a stripe."""
        return self.members - self.parity

    @property
    def parity_bytes(self) -> int:
        """What each member stores for the others: `parity` rows of a block each, one behind the other."""
        return self.parity * self.block

    def stripe_of(self, member: int, block: int) -> int:
        """The stripe of a member's block; its position there is the block's number."""
        return (member - self.parity - block) % self.members

    def holders(self, stripe: int) -> tuple[int, ...]:
        """The members that hold the stripe's parity, by row."""
        return tuple((stripe + row) % self.members for row in range(self.parity))

    def contributors(self, stripe: int) -> tuple[int, ...]:
        """The members whose blocks make up the stripe, by position."""
        return tuple((stripe + self.parity + position) % self.members for position in range(self.data))

    def stripes_held(self, member: int) -> tuple[int, ...]:
        """By row: the stripe whose row the member holds."""
        return tuple((member - row) % self.members for row in range(self.parity))

    def span(self, block: int, length: int) -> tuple[int, int]:
        """Start and end of a block in an image of `length` bytes; empty where the image is shorter."""
        return min(block * self.block, length), min((block + 1) * self.block, length)

    def row_span(self, row: int) -> tuple[int, int]:
        """Start and end of a row in what a member stores for the others."""
        return row * self.block, (row + 1) * self.block

    def decodable(self, data: Collection[int], parity: Collection[int], wanted: Collection[int]) -> bool:
        """Whether the images of all `wanted` can be had from the images of `data` and the rows that `parity` hold."""
        lost = set(wanted) - set(data)
        stripes = {self.stripe_of(member, block) for member in lost for block in range(self.data)}
        return all(self._count(stripe, data, parity) >= self.data for stripe in stripes)

    def sources(self, data: Collection[int], parity: Collection[int], member: int, block: int) -> tuple[Source, ...]:
        """The k parts to read to rebuild a member's block, in codeword order: data where there is some, then the rows of those
        who are read least for that member. Its own image counts as lost. Raises ValueError where too little is left."""
        others = set(data) - {member}
        stripes = [self.stripe_of(member, b) for b in range(self.data)]
        load = Counter(m for stripe in stripes for m in self.contributors(stripe) if m in others)
        for stripe in stripes[:block]:
            load.update(self._rows(stripe, others, parity, load))
        return self._parts(stripes[block], others, self._rows(stripes[block], others, parity, load))

    def _count(self, stripe: int, data: Collection[int], parity: Collection[int]) -> int:
        return sum(m in data for m in self.contributors(stripe)) + sum(m in parity for m in self.holders(stripe))

    def _rows(self, stripe: int, data: Collection[int], parity: Collection[int], load: Counter[int]) -> list[int]:
        """The holders to read, as many as blocks are missing; fewer if there are not enough."""
        missing = sum(m not in data for m in self.contributors(stripe))
        return sorted((m for m in self.holders(stripe) if m in parity), key=lambda m: load[m])[:missing]

    def _parts(self, stripe: int, data: Collection[int], rows: Collection[int]) -> tuple[Source, ...]:
        contributors, holders = enumerate(self.contributors(stripe)), enumerate(self.holders(stripe))
        found = [Source("data", m, position, position) for position, m in contributors if m in data]
        found += [Source("parity", m, row, self.data + row) for row, m in holders if m in rows]
        if len(found) < self.data:
            raise ValueError(f"stripe {stripe} has {len(found)} parts left of the {self.data} that it takes")
        return tuple(found)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
