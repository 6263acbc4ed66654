"""Who protects whom in an attempt: from pods and their failure domains to groups of ranks, and what these can lose. Pure.

A group of pods is coded rank by rank: the ranks with the same local number form a codeword (`erasure.layout`). Everybody who
has to know computes the same from the same members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .config import PeersConfig
from .erasure.groups import Group, Place, make_groups, tolerance
from .erasure.layout import ALIGN, Layout
from .messages import Member, Parity
from .timeline import Copy

_NEIGHBOURS = 2  # pods that a pod without a group watches on each side
_CONNECTIONS = 256  # that any pod serves
_BLOCKS = 8  # of a lost rank, that are rebuilt side by side
_LINE = 100e6 / 8  # bytes a second: the slowest line that a job is expected to have
_MARGIN = 16  # other traffic may take the rest, and does for seconds


def groups_of(members: Sequence[Member], config: PeersConfig, without: Collection[int] = ()) -> tuple[Group, ...]:
    """The groups of an attempt; none if protection is off or there is nobody to protect."""
    if not config.parity:
        return ()
    return make_groups([Place(m.index, m.domain) for m in members], config.group_size, config.parity, without)


def rank_groups(groups: Iterable[Group], members: Iterable[Member]) -> dict[int, tuple[tuple[int, ...], int]]:
    """For each rank that is protected: the ranks of its codeword in order (itself among them), and how many may be lost."""
    by_index = {m.index: m for m in members}
    found: dict[int, tuple[tuple[int, ...], int]] = {}
    for group in groups:
        pods = [by_index[i] for i in group.members]
        for local in range(min(m.processes for m in pods)):
            ranks = tuple(m.first_rank + local for m in pods)
            found.update(dict.fromkeys(ranks, (ranks, group.parity)))
    return found


def watched(index: int, members: Sequence[Member], groups: Iterable[Group]) -> tuple[Member, ...]:
    """The pods that pod `index` looks after: those of its group, else its neighbours in a ring."""
    group = next((g.members for g in groups if index in g.members), None)
    if group is not None:
        return tuple(m for m in members if m.index in group and m.index != index)
    place = next((i for i, m in enumerate(members) if m.index == index), 0)
    around = [members[(place + d) % len(members)] for d in (*range(1, _NEIGHBOURS + 1), *range(-_NEIGHBOURS, 0))]
    return tuple({m.index: m for m in around if m.index != index}.values())


def connections(config: PeersConfig, processes: int) -> int:
    """How many a pod may have to serve at a time: each rank of the others in its group has one in a round, and those of the
    round before may not have ended yet; each lost rank that is rebuilt has one for each block that is under way."""
    largest = 2 * config.group_size  # a group is larger than asked for where another one would be too small for its parity
    return max(_CONNECTIONS, (2 * largest + _BLOCKS * config.parity) * processes)


def least_rate(bandwidth: int, sharing: int) -> float:
    """Bytes a second below which one of so many connections that share a pod's line holds up its round: a sixteenth of its
    share of what a pod may send, or of a slow line. Who keeps to the limit is never below."""
    return min(bandwidth or _LINE, _LINE) / sharing / _MARGIN


@dataclass(frozen=True)
class Patience:
    """With a source: `left` seconds that it may yet be waited for, never more than `most`. What it sends earns it the time that
    this takes at the `least` rate (0: any will do). So who is faster is waited for without end, who is slower not for long."""

    least: float
    left: float
    most: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.most or self.left)

    def after(self, waited: float, received: int) -> Patience:
        """It took so many seconds to send so many bytes."""
        if not self.least:
            return self
        left = min(self.most, self.left + received * self.per_byte - waited)
        return self if left == self.left else replace(self, left=left)  # as it is after each piece of a fast one

    @property
    def per_byte(self) -> float:
        """Seconds that a byte earns."""
        return 1 / self.least if self.least else 0.0

    @property
    def is_out(self) -> bool:
        """Whether it is not waited for any longer."""
        return self.left < 0


def suspect(groups: Iterable[Group], done: Collection[int]) -> int:
    """Which pod seems to hold up a round that does not end: the only one of its group that is not `done`, or the only one that
    is: all others wait for what it sends. -1 if it is no single one; of two it could be either."""
    found = set()
    for group in groups:
        ready, waiting = ([i for i in group.members if (i in done) is wanted] for wanted in (True, False))
        if waiting:
            found.add(_odd_one(ready, waiting) if len(group.members) > 2 else -1)
    return found.pop() if len(found) == 1 else -1


def _odd_one(ready: Sequence[int], waiting: Sequence[int]) -> int:
    if len(waiting) == 1:
        return waiting[0]
    return ready[0] if len(ready) == 1 else -1


@dataclass(frozen=True)
class Holdings:
    """What the pods of a job have in RAM: snapshots by rank, and parity by the rank whose pod holds it."""

    sealed: Mapping[int, Collection[Copy]]
    parity: Mapping[int, Collection[Parity]]

    def rebuildable(self, rank: int, copy: Copy) -> bool:
        """Whether a rank's snapshot can be computed from what others hold, whatever the rank itself has."""
        held = {p for entries in self.parity.values() for p in entries if p.copy == copy and rank in p.group}
        kinds = (p for p in held if 0 < p.parity < len(p.group))  # pods are not trusted
        return any(self._decodable(rank, kind) for kind in kinds)

    def _decodable(self, rank: int, kind: Parity) -> bool:
        places = range(len(kind.group))
        data = [i for i in places if kind.group[i] != rank and kind.copy in self.sealed.get(kind.group[i], ())]
        parity = [i for i in places if kind in self.parity.get(kind.group[i], ())]
        return Layout(len(kind.group), kind.parity, ALIGN).decodable(data, parity, [kind.group.index(rank)])

    def whole(self, kind: Parity) -> bool:
        """Whether every pod of a group has both its own snapshot and its parity of that step."""
        return all(kind.copy in self.sealed.get(r, ()) and kind in self.parity.get(r, ()) for r in kind.group)


def faults(holdings: Holdings, copy: Copy, pods: Mapping[int, int], domains: Mapping[int, str]) -> int:
    """How many failure domains, whichever they are, can be lost at once without losing this step from RAM.

    `pods` gives each rank's pod, `domains` each pod's domain ("" is a domain of its own).
    """
    kinds = {p for entries in holdings.parity.values() for p in entries if p.copy == copy and holdings.whole(p)}
    best: dict[int, int] = {}
    for kind in kinds:
        bearable = tolerance(Group(tuple(pods[r] for r in kind.group), kind.parity), domains)
        best.update({r: max(bearable, best.get(r, 0)) for r in kind.group})
    return min((best.get(rank, 0) for rank in pods), default=0)
