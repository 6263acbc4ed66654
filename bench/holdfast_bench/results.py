"""build/bench.json and build/bench.md: what this run measures goes to what an earlier one left there of other figures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .machine import sentence, versions
from .model import Figure, Outcome, Row, to_json
from .report import markdown

Document = dict[str, Any]
_PARTS = ("figures", "rows", "cases", "measured")  # by figure; the rest of the document is about this run


class Results:
    """Of a run with these `chosen` figures. `order` is that of the table, and has all figures that there are."""

    def __init__(
        self, folder: Path, chosen: Collection[str], order: Sequence[str], machine: dict[str, Any], scale: float
    ) -> None:
        self._folder, self._order, self._machine, self._scale = folder, order, machine, scale
        self._left = _left(folder / "bench.json", [name for name in order if name not in chosen])
        self.outcomes: dict[str, Outcome] = {}
        self._measured: dict[str, Document] = {}

    def add(self, name: str, outcome: Outcome, seconds: float) -> None:
        """Write after each figure: a run that is stopped leaves what it found."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        how = {"at": at, "seconds": round(seconds, 1), "scale": self._scale, "machine": sentence(self._machine)}
        self.outcomes[name], self._measured[name] = outcome, how
        self._folder.mkdir(parents=True, exist_ok=True)
        _replace(self._folder / "bench.json", json.dumps(self._document(), indent=1) + "\n")
        _replace(self._folder / "bench.md", self._table())

    def _document(self) -> Document:
        own = to_json(self.outcomes, machine=self._machine, versions=versions(), scale=self._scale) | {
            "measured": self._measured
        }
        return own | {part: self._sorted({**self._left[part], **own[part]}) for part in _PARTS}

    def _table(self) -> str:
        earlier = [f"{name} at {how.get('at', 'an unknown time')}" for name, how in self._left["measured"].items()]
        note = f"{sentence(self._machine)}; earlier, {', '.join(earlier)}" if earlier else sentence(self._machine)
        return markdown(self._sorted({**_outcomes(self._left), **self.outcomes}), note)

    def _sorted(self, by_figure: dict[str, Any]) -> dict[str, Any]:
        return {name: by_figure[name] for name in self._order if name in by_figure}


def _left(path: Path, names: Sequence[str]) -> Document:
    """What an earlier run found out about these figures; nothing if that can't be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        _outcomes(document)
        measured = document.get("measured", {})
        kept = [name for name in names if name in document["figures"]]
        by_part = {**document, "measured": {name: measured.get(name, {}) for name in kept}}
        return {part: {name: by_part[part][name] for name in kept} for part in _PARTS}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {part: {} for part in _PARTS}


def _outcomes(document: Document) -> dict[str, Outcome]:
    return {
        name: Outcome(Figure(**figure), [Row(**row) for row in document["rows"][name]], document["cases"][name])
        for name, figure in document["figures"].items()
    }


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: it holds what took hours."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
