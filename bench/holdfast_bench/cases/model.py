"""The figure of the proof: how many states of the commit and recovery protocol are explored, and what that finds (`spec/`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..context import Context
from ..environments import ROOT
from ..model import Figure, Outcome, Row
from ..progress import say

_TARGET = ">= 1 million states, 0 violations, >= 12 mutations caught"
_SECONDS = 3600.0


def model(context: Context) -> Outcome:
    """All large worlds, then the hunt after mutations; the small worlds alone if the run is scaled down."""
    explored = _run("explore", *(["--small"] if context.scale < 1 else []))
    hunted = _run("mutations")
    if explored is None or hunted is None:
        return Outcome(Figure.failed("states", _TARGET))
    states, caught = explored["states"], hunted["caught"]
    holds = states >= 1_000_000 and not explored["violations"] and caught >= 12 and caught == hunted["mutations"]
    figure = Figure(float(states), "states", _TARGET, holds)
    return Outcome(figure, [_row(w) for w in explored["worlds"]], {"explored": explored, "mutations": hunted})


def _run(what: str, *options: str) -> dict[str, Any] | None:
    """What the command wrote as JSON; None if it wrote nothing in time."""
    say(f"  {what}")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "holdfast_spec", what, *options, "--json", str(found)]
        try:
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "spec")}, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        return json.loads(found.read_text()) if found.exists() else None


def _row(world: dict[str, Any]) -> Row:
    note = world["violation"] or f"{'all of them' if world['complete'] else 'not all'}, {world['seconds']:.0f} s"
    return Row(f"model: {world['world']}", "Holdfast", "states", float(world["states"]), note=note)
