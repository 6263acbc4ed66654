"""The demo's result: a table for the terminal and build/demo.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .measure import NONE, Outcome

_HEAD = ("fault", "level used", "resumed from", "steps lost", "seconds", "")
_NUMBERS = (3, 4)  # columns


@dataclass(frozen=True)
class Skipped:
    """A fault that this cluster can't be given, and why."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Result:
    """All that the demo found out. `weights` are hashes of the run without and the run with faults."""

    faults: tuple[Outcome, ...]
    skipped: tuple[Skipped, ...]
    weights: tuple[str | None, str | None]
    set_up_seconds: float
    total_seconds: float
    steps: int
    step_seconds: float
    goodput: float | None

    @property
    def bit_identical(self) -> bool:
        """Whether the final weights are the same, bit for bit."""
        return self.weights[0] is not None and self.weights[0] == self.weights[1]

    @property
    def passed(self) -> bool:
        """Whether every fault was recovered from as it should be, and nothing was changed by it."""
        return self.bit_identical and bool(self.faults) and not any(f.problem for f in self.faults)

    def write(self, path: Path) -> None:
        """As JSON."""
        document = {
            "faults": [f.record() for f in self.faults],
            "skipped": [{"kind": s.kind, "reason": s.reason} for s in self.skipped],
            "bit_identical": self.bit_identical,
            "weights_sha256": {"without_faults": self.weights[0], "with_faults": self.weights[1]},
            "set_up_seconds": round(self.set_up_seconds, 1),
            "total_seconds": round(self.total_seconds, 1),
            "steps": self.steps,
            "step_seconds": round(self.step_seconds, 4),
            "goodput": self.goodput,
            "passed": self.passed,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def text(self) -> str:
        """For the terminal."""
        same = "identical" if self.bit_identical else "DIFFERENT"
        lines = [
            table(self.faults),
            *(f"skipped: {s.kind}: {s.reason}" for s in self.skipped),
            "",
            f"final weights without faults  {self.weights[0] or 'unknown'}",
            f"final weights with faults     {self.weights[1] or 'unknown'}   bit for bit {same}",
            f"{self.steps} steps of {self.step_seconds:.3f} s each",
            f"set-up {self.set_up_seconds:.0f} s, all in all {self.total_seconds:.0f} s",
        ]
        return "\n".join(lines)


def row(outcome: Outcome) -> tuple[str, ...]:
    """One fault's line of the table."""
    resumed = "went on" if outcome.level == NONE else f"step {outcome.resumed_step}"
    last = f"NOT OK: {outcome.problem}" if outcome.problem else outcome.note
    return (outcome.kind, outcome.level, resumed, str(outcome.lost_steps), f"{outcome.seconds:.2f}", last)


def table(outcomes: Sequence[Outcome]) -> str:
    """All faults, aligned."""
    rows = [_HEAD, *(row(o) for o in outcomes)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(_cells(r, widths)).rstrip() for r in rows]
    lines.insert(1, "-" * (sum(widths[:-1]) + 2 * len(widths)))
    return "\n".join(lines)


def _cells(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Padded; numbers to the right."""
    return [c.rjust(w) if i in _NUMBERS else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
