"""Which copies of a step still count: the fence that needs no clock and no atomic store.

Attempt `a` resumes from step `r` and goes on from there. Whatever earlier attempts wrote for steps above `r` is abandoned:
it may be missing on some ranks, or be written late by a zombie. So a copy of step `s` by attempt `a` is void as soon as
some later attempt resumed below `s`, no matter when the bytes arrived. It follows that for each step at most one attempt's
copies are valid: had a later attempt written the same step, it resumed below it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Copy:
    """One step as written by one attempt."""

    step: int
    attempt: int


@dataclass(frozen=True, order=True)
class Resume:
    """Attempt `attempt` started from `step` (-1: from scratch)."""

    attempt: int
    step: int


History = tuple[Resume, ...]


def is_valid(copy: Copy, history: Iterable[Resume]) -> bool:
    """False if a later attempt resumed below the copy's step."""
    return not any(r.attempt > copy.attempt and r.step < copy.step for r in history)


def valid(copies: Iterable[Copy], history: History) -> frozenset[Copy]:
    """The copies that still count."""
    return frozenset(c for c in copies if is_valid(c, history))


def extend(history: History, resume: Resume) -> History:
    """Add an attempt. Entries that it makes redundant (earlier, from the same step or above) go."""
    return (*(r for r in history if r.attempt < resume.attempt and r.step < resume.step), resume)


def merge(*histories: Iterable[Resume]) -> History:
    """One history of several sources, for example the job's status and a store's records."""
    merged: History = ()
    for resume in sorted({r for h in histories for r in h}):
        merged = extend(merged, resume)
    return merged
