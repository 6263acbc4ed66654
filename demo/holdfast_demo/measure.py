"""What a fault cost: level used, step resumed from, steps lost, seconds. Pure, but for the wait that gathers the evidence.

Two witnesses are heard: the job's status (level and step) and rank 0's log (times, steps that were done twice). The seconds run
from the moment of the fault on this machine's clock to the time stamp of the next finished step after the recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import WaitTimeout
from .jobs import Job, recovered_at
from .kube import Object
from .steplog import Sample
from .waiting import wait_for

NONE = "none"  # level: training was never interrupted
SCRATCH = "scratch"  # level: no checkpoint was used, training began anew


@dataclass(frozen=True)
class Before:
    """A job as it was right before a fault: `saved` is the newest step by level that the status called committed."""

    attempt: int
    step: int
    saved: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A fault and what came of it. `at` and `resumed_at` in seconds since the epoch; `problem` empty if all was well."""

    kind: str
    level: str
    resumed_step: int
    lost_steps: int
    seconds: float
    at: float
    resumed_at: float
    note: str = ""
    problem: str = ""

    def record(self) -> dict[str, object]:
        """For build/demo.json."""
        return {
            "kind": self.kind,
            "level": self.level,
            "resumed_step": self.resumed_step,
            "lost_steps": self.lost_steps,
            "seconds": round(self.seconds, 2),
            "note": self.note,
            "problem": self.problem,
        }


def look(job: Job) -> Before:
    """The job right before a fault."""
    status = job.status
    saved = {name: int(level["step"]) for name, level in status.get("checkpoints", {}).items()}
    return Before(int(status.get("attempt", 0)), job.log.step, saved)


def recovery(job: Job, kind: str, before: Before, at: float, limit: float) -> Outcome:
    """Wait for the recovery from a fault injected at `at`, and measure it. Raises WaitTimeout."""
    status = job.wait(lambda s: _recovered(s, before), limit, f"recovery after `{kind}`", every=0.1)
    last = status["lastRecovery"]
    resumed = int(last["step"])
    seen = _next_sample(job, resumed, at, recovered_at(status))
    lost = max(int(last.get("lostSteps", 0)), _repeated(job.log.samples, resumed, seen.time))
    level = str(last["level"]) if resumed >= 0 else SCRATCH
    return Outcome(kind, level, resumed, lost, seen.time - at, at, seen.time, note=str(last.get("reason", "")))


def _recovered(status: Object, before: Before) -> bool:
    last = status.get("lastRecovery") or {}
    return int(last.get("attempt", 0)) > before.attempt and status.get("phase") in ("Running", "Succeeded")


def _next_sample(job: Job, resumed: int, at: float, told: float) -> Sample:
    """The first step after the recovery in rank 0's log; the status' word for it if the log is too far behind."""

    def candidates() -> list[Sample]:
        return [s for s in job.log.samples if s.step == resumed + 1 and s.time > at]

    try:
        wait_for(candidates, 10, f"step {resumed + 1} in the log of rank 0", every=0.1)
    except WaitTimeout:
        return Sample(told, resumed + 1, "")
    return candidates()[-1]  # the abandoned attempt may have got that far too, before


def _repeated(samples: Sequence[Sample], resumed: int, until: float) -> int:
    """How many steps rank 0 had finished beyond the one resumed from."""
    furthest = max((s.step for s in samples if s.time < until), default=resumed)
    return max(0, furthest - resumed)


def uninterrupted(job: Job, kind: str, before: Before, at: float, limit: float, steps: int = 10) -> Outcome:
    """Wait until training has gone on for `steps` steps after the fault with no new attempt; else it is a recovery."""
    job.wait_steps(steps, limit, at)
    if job.attempt > before.attempt:
        return recovery(job, kind, before, at, limit)
    first = next(s for s in job.log.samples if s.time > at)
    return Outcome(kind, NONE, first.step - 1, 0, first.time - at, at, first.time)


def judge(outcome: Outcome, before: Before, levels: Sequence[str], floor: Sequence[str]) -> str:
    """What is wrong with an outcome, or nothing: a level that was not expected, or a saved step that was lost.

    `floor`: the levels that the fault left alone. The newest step that any of them had committed before must not be lost.
    """
    if outcome.level not in levels:
        return f"resumed from {outcome.level}, expected {' or '.join(levels)}"
    kept = max((before.saved.get(name, -1) for name in floor), default=-1)
    if outcome.level != NONE and outcome.resumed_step < kept:
        return f"resumed from step {outcome.resumed_step}, but step {kept} was saved"
    return ""
