"""From which copy a job goes on, and where each rank gets its part: the freshest step that every shard can be had for (I3).

Each rank takes the cheapest level that has its part of the step: its own memory, else its peers' RAM, else a store, in the
order of the job's spec. One restore may mix levels: all parts are of the same copy, so they belong together wherever they lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .messages import MEMORY, PEERS, Inventory, Source, StoreInventory
from .protection import Holdings
from .timeline import Copy, History, valid


@dataclass(frozen=True)
class Restore:
    """A way to go on. `source.level` is the slowest level in use; `levels` has the ranks that do not take it from memory."""

    source: Source
    levels: Mapping[int, str] = field(default_factory=dict)


def choose(
    holdings: Holdings, inventory: Inventory | None, world_size: int, history: History, excluded: Iterable[Source] = ()
) -> Restore | None:
    """The freshest copy that all ranks can have, or None. At most one copy of a step is valid, so steps decide."""
    banned = frozenset(excluded)
    stores = inventory.stores if inventory else ()
    for copy in sorted(valid(_all_copies(holdings, stores), history), reverse=True):
        found = _restore(holdings, stores, world_size, copy, banned)
        if found is not None:
            return found
    return None


def _all_copies(holdings: Holdings, stores: Iterable[StoreInventory]) -> set[Copy]:
    in_memory = {c for copies in holdings.sealed.values() for c in copies}
    return in_memory.union(*(s.copies for s in stores))


def _restore(
    holdings: Holdings, stores: Collection[StoreInventory], world_size: int, copy: Copy, banned: Collection[Source]
) -> Restore | None:
    order = (MEMORY, PEERS, *(s.name for s in stores))
    held = {s.name for s in stores if copy in s.copies}
    levels: dict[int, str] = {}
    for rank in range(world_size):
        usable = (level for level in order if not _banned(banned, level, copy, rank))
        level = next((level for level in usable if _has(holdings, held, level, copy, rank)), None)
        if level is None:
            return None
        levels[rank] = level
    slowest = max(levels.values(), key=order.index)
    return Restore(Source(slowest, copy.step, copy.attempt), {r: level for r, level in levels.items() if level != MEMORY})


def _banned(banned: Collection[Source], level: str, copy: Copy, rank: int) -> bool:
    return any(Source(level, copy.step, copy.attempt, r) in banned for r in (rank, -1))


def _has(holdings: Holdings, held: Collection[str], level: str, copy: Copy, rank: int) -> bool:
    if level == MEMORY:
        return copy in holdings.sealed.get(rank, ())
    return holdings.rebuildable(rank, copy) if level == PEERS else level in held


def explain(restore: Restore | None, inventory: Inventory | None) -> str:
    """Why it goes on from there, in words."""
    if restore is None:
        return "no level holds a step: starts from scratch"
    step = restore.source.step
    if not restore.levels:
        return f"step {step} is in the memory of every rank"
    parts = [_part(level, [r for r, name in sorted(restore.levels.items()) if name == level]) for level in _levels(restore)]
    broken = [f"{s.name}: {s.error}" for s in (inventory.stores if inventory else ()) if s.error]
    tail = f" ({'; '.join(broken)})" if broken else ""
    return f"step {step} is the freshest that every rank can have: {', '.join(parts)}, the others from memory{tail}"


def _levels(restore: Restore) -> list[str]:
    return sorted(set(restore.levels.values()), key=lambda level: (level != PEERS, level))


def _part(level: str, ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    whose = f"rank{'s' if len(ranks) > 1 else ''} {names}"
    return f"{whose} rebuilt from peers' RAM" if level == PEERS else f"{whose} from {level}"
