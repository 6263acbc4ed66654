"""What the benchmark finds out: rows (one measured system in one case), figures (one claim of ours), and their JSON.

A ratio compares what was measured in the same run, alternately: absolute times drift on shared machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `ours`, `peer`, `bound` are medians in `unit`; None where that was not measured. `ratio` is ours to peer, or to bound in a
    row without a peer; `note` says how it was measured, or why it could not be.
    """

    case: str
    name: str
    unit: str
    ours: float | None = None
    peer: float | None = None
    bound: float | None = None
    ratio: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One claim: `value` in `unit` against `target` (in words); `peer` is the best peer's value and `bound` the physical limit,
    in the same unit. `samples` are the single measurements of ours that `value` is the median of."""

    value: float | None
    unit: str
    target: str
    holds: bool
    peer: float | None = None
    bound: float | None = None
    samples: Sequence[float] = ()

    @classmethod
    def failed(cls, unit: str, target: str) -> Figure:
        """A figure that could not be measured does not hold."""
        return cls(None, unit, target, holds=False)


@dataclass(frozen=True)
class Outcome:
    """What a case found out. `details` is free-form and lands in the JSON beside the rows."""

    figure: Figure
    rows: Sequence[Row] = ()
    details: dict[str, Any] = field(default_factory=dict)


def to_json(outcomes: dict[str, Outcome], *, machine: dict[str, Any], versions: dict[str, str], scale: float) -> dict[str, Any]:
    """The content of build/bench.json."""
    return {
        "figures": {name: asdict(outcome.figure) for name, outcome in outcomes.items()},
        "rows": {name: [asdict(row) for row in outcome.rows] for name, outcome in outcomes.items()},
        "cases": {name: outcome.details for name, outcome in outcomes.items()},
        "machine": machine,
        "versions": versions,
        "scale": scale,
    }
