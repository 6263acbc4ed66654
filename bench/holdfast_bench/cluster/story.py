"""The faults that both sides are hit by, chapter by chapter, and what each of them cost.

A chapter is one fresh job. The peer goes first, at its own pace; ours is then hit at the same moments after its first step.
Every wait has a bound, and what did not come back within it is told as that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from holdfast_demo.errors import WaitTimeout
from holdfast_demo.steplog import Line, Sample, StepLog
from holdfast_demo.waiting import wait_for

from ..progress import say

KILL, DELETE, POWER = "process killed", "pod deleted", "node powered off"
_BEGINS = "begins with "
_QUIET = 15.0  # seconds of training between a recovery and the next fault
_QUIET_STEPS = 20
_START_SECONDS = 240.0
_AFTER = 5.0  # seconds that are followed after the last recovery


@dataclass(frozen=True)
class Hit:
    """A fault and what came of it. `at`: seconds since the job's first step. `seconds`: until the next finished step after the
    recovery, None if there was none within `limit`; `still`: for how much of it no step was finished (a job may go on until its
    pod is gone). `lost`: steps that had to be done again."""

    kind: str
    at: float
    seconds: float | None
    limit: float
    lost: int = 0
    note: str = ""
    still: float | None = None

    @property
    def told(self) -> str:
        """In words, for a table or a picture."""
        if self.seconds is None:
            return f"not in {self.limit:.0f} s"
        went_on = self.still is not None and self.still < 0.8 * self.seconds
        return f"{self.seconds:.1f} s" + (f" ({self.still:.1f} s still)" if went_on else "")


@dataclass
class Story:
    """One side's job in a chapter: (seconds since its first step, step) of all steps, the faults, when it was left alone."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    until: float = 0.0


@dataclass(frozen=True)
class Chapter:
    """A fresh job, what it is hit by, and how long each recovery may take."""

    name: str
    kinds: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Told:
    """A chapter with both sides; `theirs` None where there is no peer in this run."""

    chapter: Chapter
    ours: Story
    theirs: Story | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def told(record: dict[str, Any]) -> Told:
    """The same back from JSON."""
    chapter = record["chapter"]
    stories = [_story(record[side]) if record[side] else None for side in ("ours", "theirs")]
    assert stories[0] is not None
    return Told(Chapter(chapter["name"], tuple(chapter["kinds"]), chapter["limit"]), stories[0], stories[1])


def _story(record: dict[str, Any]) -> Story:
    steps = [(float(at), int(step)) for at, step in record["steps"]]
    return Story(steps, [Hit(**hit) for hit in record["hits"]], record["until"])


@dataclass(frozen=True)
class Back:
    """Training again: when the first step after the recovery was finished, and how many were done again."""

    at: float
    lost: int
    note: str = ""


class Side(Protocol):
    """A job of one of the two, and how it is broken."""

    @property
    def log(self) -> StepLog:
        """Of rank 0."""

    def strike(self, kind: str) -> float:
        """Break it; the moment of it."""

    def back(self, kind: str, at: float, limit: float) -> Back:
        """Wait for the recovery. Raises WaitTimeout."""

    def end(self) -> None:
        """Mend what was broken, delete the job."""


def tell(side: Side, chapter: Chapter, like: Story | None = None) -> Story:
    """Hit a job that was just started. `like`: at the moments of this story, and followed for as long. It is left running."""
    wait_for(lambda: side.log.samples, _START_SECONDS, "the first step", seen=lambda: _last_words(side.log))
    zero = side.log.samples[0].time
    story = Story()
    begun = zero
    for number, kind in enumerate(chapter.kinds):
        moment = like.hits[number].at if like is not None and number < len(like.hits) else 0.0
        _train(side.log, max(begun + _QUIET, zero + moment) if not moment else zero + moment, begun)
        hit = _hit(side, kind, chapter.limit, zero)
        story.hits.append(hit)
        say(f"    {kind} at {hit.at:.0f} s: {hit.told}" + (f" ({hit.note})" if hit.note else ""))
        if hit.seconds is None:
            break  # what does not train can't be broken
        begun = zero + hit.at + hit.seconds
    _until(max(time.time() + _AFTER, zero + (like.until if like is not None else 0.0)))
    story.steps = [(sample.time - zero, sample.step) for sample in side.log.samples]
    story.until = time.time() - zero
    story.hits = [replace(hit, still=end - begin) for hit, (begin, end, _) in zip(story.hits, pauses(story), strict=True)]
    return story


def pauses(story: Story) -> list[tuple[float, float, int]]:
    """For each fault (from, to, step that was reached) of the time without steps: from the last one before the recovery until
    the first one after it, or until the job was left alone."""
    found = []
    for hit in story.hits:
        end = hit.at + hit.seconds if hit.seconds is not None else story.until
        before = [(at, step) for at, step in story.steps if at < end - 1e-6]
        begin, step = before[-1] if before else (hit.at, 0)
        found.append((begin, end, step))
    return found


def _hit(side: Side, kind: str, limit: float, zero: float) -> Hit:
    at = side.strike(kind)
    try:
        back = side.back(kind, at, limit)
    except WaitTimeout as error:
        say(f"    {error}")
        return Hit(kind, at - zero, None, limit)
    return Hit(kind, at - zero, back.at - at, limit, back.lost, back.note)


def _train(log: StepLog, moment: float, since: float) -> None:
    """Wait until `moment`, and until some steps were finished since the last recovery."""

    def ready() -> bool:
        return time.time() >= moment and sum(s.time > since for s in log.samples) >= _QUIET_STEPS

    patience = max(0.0, moment - time.time()) + 60.0
    wait_for(ready, patience, f"{_QUIET_STEPS} steps before the next fault", every=0.05, seen=lambda: _last_words(log))


def _until(moment: float) -> None:
    wait_for(lambda: time.time() >= moment, max(0.0, moment - time.time()) + 10.0, "the end of the chapter")


def _last_words(log: StepLog) -> str:
    return " | ".join(line.text for line in log.lines[-5:]) or "rank 0 said nothing"


def resumed(lines: Sequence[Line], samples: Sequence[Sample], at: float) -> Back | None:
    """When a plain job trains again after a fault: the first step of a process of rank 0 that began after it.

    A step that was on its way when the fault struck does not count, nor one of a job that goes on until its pod is gone.
    """
    for begin in (line for line in lines if line.time > at and line.text.startswith(_BEGINS)):
        first = next((s for s in samples if s.time > begin.time), None)
        if first is not None:
            furthest = max((s.step for s in samples if s.time < begin.time), default=first.step - 1)
            return Back(first.time, max(0, furthest - first.step + 1))
    return None
