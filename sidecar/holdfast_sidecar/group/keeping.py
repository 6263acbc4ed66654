"""Which steps a member keeps for its peers' sake, whatever the writer would like to overwrite. Pure; counterpart: `protect`.

*Protected* is the step that all of the member's peers hold whole parity of; *pending* the one that is on its way. The protected
one changes at the coordinator's word alone: others may have given up the one before as soon as that word was said.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from holdfast_core.messages import PEERS, Order, Source
from holdfast_core.timeline import Copy, History, is_valid


@dataclass(frozen=True)
class Kept:
    """What a member keeps, its own snapshot and its parity alike."""

    protected: Copy | None = None
    pending: Copy | None = None

    @property
    def copies(self) -> frozenset[Copy]:
        """Both."""
        return frozenset(c for c in (self.protected, self.pending) if c is not None)


def ordered(kept: Kept, order: Order, index: int, whole: Collection[Copy]) -> Kept:
    """Pod `index` after an order of level `peers`. `whole`: copies of which it holds whole parity, for all its ranks."""
    if not any(index in group.members for group in order.groups):  # nobody counts on this pod, once what they make is whole
        return Kept() if order.kind == "committed" else replace(kept, pending=None)
    if order.kind == "replicate":
        return replace(kept, pending=order.copy)
    if order.kind == "release":
        return replace(kept, pending=None) if kept.pending == order.copy else kept
    if order.kind != "committed" or order.copy not in whole:
        return kept  # what we do not hold can't take the place of what we do
    behind = kept.pending is not None and kept.pending.step <= order.copy.step
    return Kept(order.copy, None if behind else kept.pending)


def prepared(kept: Kept, source: Source | None, history: History) -> Kept:
    """At the start of an attempt. Of what it rebuilds from every member's own part is needed, and parity of it may be with some
    alone: what all hold of an older step stays too, until the newer one is protected again."""
    protected, pending = (c if c is not None and is_valid(c, history) else None for c in (kept.protected, kept.pending))
    if source is None or source.level != PEERS:
        return Kept(protected, pending)
    copy = Copy(source.step, source.attempt)
    return Kept(copy) if protected is None or protected == copy else Kept(protected, copy)
