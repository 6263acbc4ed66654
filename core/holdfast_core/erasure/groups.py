"""Which pods keep parity for each other: groups that spread over failure domains. Pure.

The number of pods decides how many groups there are, not their domains. A domain with more pods than there are groups has
several in one group; `tolerance` tells what that costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A pod: its index, and the failure domain it runs in: a node's name, a topology value, or "" (unknown, one of its own)."""

    index: int
    domain: str


@dataclass(frozen=True)
class Group:
    """Pods that hold parity for each other: their indexes in codeword order; any `parity` of them may be lost."""

    members: tuple[int, ...]
    parity: int


def make_groups(places: Sequence[Place], size: int, parity: int, without: Collection[int] = ()) -> tuple[Group, ...]:
    """Groups of about `size` pods; those in `without` are in none. The same for the same pods, in whatever order they come.

    As many groups as it takes to keep to `size`, but fewer and larger ones rather than one with too few pods for `parity`.
    Sizes differ by one at most. If all pods together are too few, the parity is what they allow; a single pod has no group. In
    each group a domain has as few pods as possible; pods that are alone in their domain group with their neighbours by index.
    """
    pods = sorted((p for p in places if p.index not in without), key=lambda p: p.index)
    parity = min(parity, len(pods) - 1)
    if parity < 1:
        return ()
    count = max(1, min(-(-len(pods) // max(size, 1)), len(pods) // (parity + 1)))
    return tuple(Group(members, parity) for members in sorted(_deal(pods, count)))


def tolerance(group: Group, domains: Mapping[int, str]) -> int:
    """How many whole domains the group can lose, whichever they are. A pod not in `domains` is in one of its own."""
    pods = [Place(index, domains.get(index, "")) for index in group.members]
    left, lost = group.parity, 0
    for domain in _domains(pods):
        left -= len(domain)
        if left < 0:
            break
        lost += 1
    return lost


def _deal(pods: Sequence[Place], count: int) -> list[tuple[int, ...]]:
    """Pods that share a domain go round the groups, domain by domain: a domain of c pods has c / count of them in each group,
    rounded. The rest fill up the groups one after the other."""
    domains = _domains(pods)
    shared = [index for domain in domains if len(domain) > 1 for index in domain]
    alone = [index for domain in domains if len(domain) == 1 for index in domain]
    groups: list[list[int]] = [shared[first::count] for first in range(count)]
    for number, group in enumerate(groups):
        room = len(pods) // count + (number < len(pods) % count) - len(group)
        group.extend(alone[:room])
        del alone[:room]
    return [tuple(sorted(group)) for group in groups]


def _domains(pods: Sequence[Place]) -> list[list[int]]:
    """The pods' indexes by domain, the largest domain first, then by index."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for pod in sorted(pods, key=lambda p: p.index):
        found[pod.domain, -1 if pod.domain else pod.index].append(pod.index)
    return sorted(found.values(), key=lambda domain: (-len(domain), domain[0]))
