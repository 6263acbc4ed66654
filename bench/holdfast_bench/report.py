"""The results for people: a table on the terminal, and the same in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .model import Outcome, Row

_HEAD = ("case", "system", "ours", "peer", "bound", "ratio", "unit", "note")


def number(value: float | None) -> str:
    """Three significant digits; empty for None."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _cells(row: Row) -> tuple[str, ...]:
    figures = (number(row.ours), number(row.peer), number(row.bound), number(row.ratio))
    return (row.case, row.name, *figures, row.unit, row.note)


def verdict(name: str, outcome: Outcome) -> str:
    """One line: the figure, its target, whether it holds."""
    figure = outcome.figure
    value = f"{number(figure.value)} {figure.unit}" if figure.value is not None else "not measured"
    return f"{name}: {value} (target: {figure.target}) {'holds' if figure.holds else 'DOES NOT HOLD'}"


def terminal(outcomes: dict[str, Outcome]) -> str:
    """Aligned columns, one block a figure."""
    blocks = []
    for name, outcome in outcomes.items():
        lines = [_HEAD, *(_cells(row) for row in outcome.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD) - 1)]
        body = [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip()
            for line in lines
        ]
        blocks.append("\n".join([verdict(name, outcome), *(body if outcome.rows else [])]))
    return "\n\n".join(blocks)


def markdown(outcomes: dict[str, Outcome], machine: str) -> str:
    """Two tables: the figures, then the rows."""
    figures = [
        (
            name,
            number(o.figure.value),
            o.figure.unit,
            o.figure.target,
            "yes" if o.figure.holds else "**no**",
            number(o.figure.peer),
            number(o.figure.bound),
        )
        for name, o in outcomes.items()
    ]
    head = ("figure", "value", "unit", "target", "holds", "best peer", "bound")
    rows = [(name, *_cells(row)) for name, outcome in outcomes.items() for row in outcome.rows]
    return "\n".join([f"Measured on {machine}.", "", *_table(head, figures), "", *_table(("figure", *_HEAD), rows), ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
