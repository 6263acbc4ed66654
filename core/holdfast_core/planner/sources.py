"""What the planner sees of snapshots: in RAM, as the sidecars tell it, and in the stores. `recovery` chooses among them."""

from __future__ import annotations

from functools import reduce

from ..messages import Inventory, Parity, StoreInventory
from ..protection import Holdings
from ..timeline import Copy, History, Resume, valid
from .passing import Pass


def holdings(work: Pass) -> Holdings:
    """Snapshots and parity in the RAM of the current pods. Each has a say about its own ranks alone: a spare that takes a
    pod's place has not learned which these are, and pods are not trusted."""
    sealed: dict[int, tuple[Copy, ...]] = {}
    parity: dict[int, tuple[Parity, ...]] = {}
    for pod in work.current:
        if pod.agent is not None:
            own = range(pod.index * work.job.processes, (pod.index + 1) * work.job.processes)
            sealed |= {rank: copies for rank, copies in pod.agent.sealed.items() if rank in own}
            parity |= {rank: held for rank, held in pod.agent.parity.items() if rank in own}
    return Holdings(sealed, parity)


def common_copies(found: Holdings, world_size: int, history: History) -> frozenset[Copy]:
    """Copies in RAM that every rank has and that no later attempt made void."""
    per_rank = [valid(found.sealed.get(rank, ()), history) for rank in range(world_size)]
    return reduce(frozenset.__and__, per_rank) if per_rank else frozenset()


def highest_attempt(inventory: Inventory | None) -> int:
    """The highest attempt number that any store has seen (an earlier job of the same name, another cluster)."""
    seen = [c.attempt for s in _stores(inventory) for c in s.copies] + [r.attempt for r in store_records(inventory)]
    return max(seen, default=0)


def store_records(inventory: Inventory | None) -> tuple[Resume, ...]:
    """All stores' records of attempts."""
    return tuple(r for s in _stores(inventory) for r in s.history)


def _stores(inventory: Inventory | None) -> tuple[StoreInventory, ...]:
    return inventory.stores if inventory else ()
