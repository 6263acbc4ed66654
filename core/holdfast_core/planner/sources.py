"""From which level and step an attempt starts: the freshest step that every rank's shard can be had for (I3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

from ..messages import MEMORY, Inventory, Source, StoreInventory
from ..timeline import Copy, History, Resume, valid


def common_copies(sealed: Mapping[int, Iterable[Copy]], world_size: int, history: History) -> frozenset[Copy]:
    """Copies in RAM that every rank has and that no later attempt made void."""
    per_rank = [valid(sealed.get(rank, ()), history) for rank in range(world_size)]
    return reduce(frozenset.__and__, per_rank) if per_rank else frozenset()


def choose(memory: Iterable[Copy], inventory: Inventory | None, history: History, excluded: Iterable[Source]) -> Source | None:
    """The freshest usable source; of equals the fastest: memory first, then stores in the user's order."""
    banned = set(excluded)
    candidates = [Source(MEMORY, c.step, c.attempt) for c in memory]
    for store in inventory.stores if inventory else ():
        candidates += [Source(store.name, c.step, c.attempt) for c in valid(store.copies, history)]
    usable = [c for c in candidates if c not in banned]
    return max(usable, key=lambda c: c.step) if usable else None  # max keeps the first of equals


def highest_attempt(inventory: Inventory | None) -> int:
    """The highest attempt number that any store has seen (an earlier job of the same name, another cluster)."""
    seen = [c.attempt for s in _stores(inventory) for c in s.copies] + [r.attempt for r in store_records(inventory)]
    return max(seen, default=0)


def store_records(inventory: Inventory | None) -> tuple[Resume, ...]:
    """All stores' records of attempts."""
    return tuple(r for s in _stores(inventory) for r in s.history)


def explain(source: Source | None, memory_missing: Iterable[int], inventory: Inventory | None) -> str:
    """Why this source, in words."""
    if source is None:
        return "no level holds a step: starts from scratch"
    if source.level == MEMORY:
        return f"step {source.step} is in the memory of every rank"
    missing = sorted(memory_missing)
    lack = f"ranks {_some(missing)} have no usable snapshot in memory" if missing else "no step in memory is as fresh"
    broken = [f"{s.name}: {s.error}" for s in _stores(inventory) if s.error]
    tail = f" ({'; '.join(broken)})" if broken else ""
    return f"{lack}; step {source.step} in {source.level} is the freshest{tail}"


def _some(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _stores(inventory: Inventory | None) -> tuple[StoreInventory, ...]:
    return inventory.stores if inventory else ()
