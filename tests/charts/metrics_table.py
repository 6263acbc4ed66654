"""docs/metrics.md as data, and the metrics that PromQL mentions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_NAME = re.compile(r"\bholdfast_[a-z_]+\b")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name: str
    type: str
    labels: tuple[str, ...]
    exporter: str  # sidecar | operator


def table() -> dict[str, Metric]:
    """All documented metrics by name."""
    found: dict[str, Metric] = {}
    exporter = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            exporter = line[3:].strip().lower()
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `holdfast_"):
            assert len(cells) == 5, f"five columns expected: {line}"
            name = cells[0].strip("`")
            assert name not in found, f"{name} stands twice in {PAGE.name}"
            labels = tuple(label.strip() for label in cells[2].split(",") if label.strip())
            found[name] = Metric(name, cells[1], labels, exporter)
    return found


def mentioned(promql: str) -> set[str]:
    """Base names of the metrics that a query uses: a histogram's parts count as the histogram."""
    known = table()
    return {name if name in known else _SUFFIX.sub("", name) for name in _NAME.findall(promql)}
