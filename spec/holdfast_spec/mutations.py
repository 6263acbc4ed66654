"""Rules made wrong on purpose. Each has to be caught by a broken promise, or else the model would not see that mistake.

A mutation changes the text of a real function, in one place. If the text is not there any more, it has to be made anew.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import worlds
from .explore import Explorer, Result
from .world import World

_OURS = "holdfast_"


@dataclass(frozen=True)
class Mutation:
    """`where` is module:function; `old` in its text becomes `new`. `world` is where it shows, `about` what is wrong then."""

    name: str
    about: str
    where: str
    old: str
    new: str
    world: World


class Outdated(LookupError):
    """The rule's text has changed."""


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The wrong rule in place of the right one, wherever it was imported to. Raises Outdated."""
    owner, name = _owner(mutation.where)
    right = inspect.getattr_static(owner, name)
    wrong = _rewritten(mutation, right)
    changed = [(owner, name)] if isinstance(owner, type) else _importers(right)
    for place, attribute in changed:
        setattr(place, attribute, wrong)
    try:
        yield
    finally:
        for place, attribute in changed:
            setattr(place, attribute, right)


def _owner(where: str) -> tuple[Any, str]:
    module, _, path = where.partition(":")
    *classes, name = path.split(".")
    owner = importlib.import_module(module)
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def _rewritten(mutation: Mutation, right: FunctionType) -> Any:
    text = textwrap.dedent(inspect.getsource(right))
    if text.count(mutation.old) != 1:
        raise Outdated(f"{mutation.name}: {mutation.where} has {text.count(mutation.old)} times {mutation.old!r}, not once")
    space: dict[str, Any] = {}
    exec(compile(text.replace(mutation.old, mutation.new), f"<{mutation.name}>", "exec"), right.__globals__, space)
    return space[right.__name__]


def _importers(function: Any) -> list[tuple[Any, str]]:
    modules = [m for n, m in list(sys.modules.items()) if n.startswith(_OURS) and m is not None]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if value is function]


def hunt(mutation: Mutation, limit: int = 0) -> Result:
    """Explore the mutation's world with the wrong rule."""
    with applied(mutation):
        return Explorer(mutation.world, limit).run()


_ARENA, _TIMELINE, _RECOVERY = "holdfast_core.arena", "holdfast_core.timeline", "holdfast_core.recovery"
_DECISIONS, _PROTECT = "holdfast_sidecar.group.decisions:Decisions", "holdfast_sidecar.group.protect:Protect"
_KEEPING, _STAGES = "holdfast_sidecar.group.keeping", "holdfast_core.planner.stages"
_FAILURES = "holdfast_core.planner.failures"

MUTATIONS = (
    Mutation(
        "no-fence", "an old process still seals slots in a pod that is fenced for a later attempt",
        f"{_ARENA}:seal", "if fence(buf) != writer:", "if False:", worlds.FENCES,
    ),
    Mutation(
        "commit-early", "a step counts as sealed by all when one rank is missing",
        f"{_DECISIONS}._sealed_by", "if self._sealed[copy] != self._world:",
        "if len(self._sealed[copy]) < len(self._world) - 1:", worlds.CALM,
    ),
    Mutation(
        "reuse-early", "a slot is overwritten before every rank has sealed a newer step",
        f"{_ARENA}:choose_slot", "if s.step < committed_step]", "]", worlds.TWO_SLOTS,
    ),
    Mutation(
        "reuse-kept", "a slot is overwritten though peers' parity is of use only beside it",
        f"{_ARENA}:choose_slot", " and not (s.state is SlotState.SEALED and s.step in kept_steps)", "", worlds.KEPT,
    ),
    Mutation(
        "parity-dropped-early", "a new round gives up the protected step before the next one is whole",
        f"{_KEEPING}:ordered", "return replace(kept, pending=order.copy)", "return Kept(None, order.copy)", worlds.KEPT,
    ),
    Mutation(
        "left-out-drops-early", "a pod that is left out gives up its part of what is still protected",
        f"{_KEEPING}:ordered", 'return Kept() if order.kind == "committed" else replace(kept, pending=None)', "return Kept()",
        worlds.FLIPPED,
    ),
    Mutation(
        "protect-early", "a step counts as protected when one member holds its parity",
        f"{_PROTECT}._is_whole", "bool(held) and all(", "bool(held) and any(", worlds.CALM,
    ),
    Mutation(
        "round-numbers", "an answer to an earlier round counts in the present one",
        f"{_PROTECT}._answers",
        "(self._round.number, self._round.copy) == (message.round, message.copy)", "True", worlds.SLOW,
    ),
    Mutation(
        "begin-unheard", "a new coordinator begins a round before all have told what they hold",
        f"{_PROTECT}._may_begin", "self._told == {m.index for m in self._members}", "True", worlds.RESTARTS,
    ),
    Mutation(
        "silent-join", "a member that connects again is not told of the round that is under way",
        f"{_PROTECT}.joined", "[*orders, self._replicate(self._round)] if self._round else orders", "orders", worlds.CUTS,
    ),
    Mutation(
        "commit-untold", "a member that connects again is not told which step is committed",
        f"{_DECISIONS}.joined", '[Order("committed", self.attempt, MEMORY, self.committed)] if self.committed else []', "[]",
        worlds.CUTS,
    ),
    Mutation(
        "survivors-forget", "survivors give up what they hold when the next attempt is prepared",
        f"{_KEEPING}:prepared", "return Kept(copy) if protected is None or protected == copy else Kept(protected, copy)",
        "return Kept()", worlds.LOSSES,
    ),
    Mutation(
        "newest-of-any", "the newest step of any rank is chosen",
        f"{_RECOVERY}:_has", "return copy in holdings.sealed.get(rank, ())",
        "return any(copy in held for held in holdings.sealed.values())", worlds.KILLS,
    ),
    Mutation(
        "oldest-first", "an older step is chosen though a fresher one can be had",
        f"{_RECOVERY}:choose", ", reverse=True", "", worlds.KILLS,
    ),
    Mutation(
        "void-chosen", "a copy that a later attempt abandoned is chosen",
        f"{_RECOVERY}:choose", "valid(_all_copies(holdings, stores), history)", "_all_copies(holdings, stores)", worlds.STORED,
    ),
    Mutation(
        "all-valid", "copies of abandoned timelines count for ever",
        f"{_TIMELINE}:is_valid", "return not any(", "return True or any(", worlds.STORED,
    ),
    Mutation(
        "no-timeline", "the timeline does not learn of an attempt",
        f"{_STAGES}:_decide_source", "extend(history, resume)", "history or extend(history, resume)", worlds.KILLS,
    ),
    Mutation(
        "same-attempt", "a failure does not begin a new attempt",
        f"{_FAILURES}:fail", "attempt=status.attempt + 1 if started else status.attempt",
        "attempt=status.attempt", worlds.KILLS,
    ),
    Mutation(
        "not-excluded", "a source that proved unusable is tried again",
        f"{_FAILURES}:exclude", "(*work.status.excluded, source)", "work.status.excluded", worlds.ROTTEN,
    ),
    Mutation(
        "put-off-for-good", "peers that were out of reach twice are never asked again",
        f"{_STAGES}:_reject", "failures.put_off(work, source, why)", "failures.exclude(work, source, why)", worlds.AWAY,
    ),
    Mutation(
        "not-all-there", "a source is decided before all pods are heard",
        f"{_STAGES}:_gather", "if len(pods) < work.job.replicas or not all(_ready(p) for p in pods):",
        "if False:", worlds.LOSSES,
    ),
    Mutation(
        "release-all", "a round that failed costs the protected step too",
        f"{_KEEPING}:ordered", "return replace(kept, pending=None) if kept.pending == order.copy else kept", "return Kept()",
        worlds.SLOW,
    ),
    Mutation(
        "manifest-early", "a step is committed in a store when one shard is there",
        f"{_DECISIONS}._uploaded", "whole = shards.keys() == self._world", "whole = bool(shards)", worlds.STORED,
    ),
    Mutation(
        "unverified", "a process restores without a look at checksums",
        "holdfast_spec.sidecar:_launch", "and pod.slots[index].good", "", worlds.BITS,
    ),
)  # fmt: skip
