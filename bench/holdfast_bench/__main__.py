"""`make bench`, or `python -m holdfast_bench [--only ID,ID]`: measures, writes bench.json and bench.md, prints a table.

Exits with 1 when a figure could not be measured; whether one holds is what it writes. Neighbours: `registry` (which figures),
`cases` (how each is measured), `link` and `worker` (one process a measured system), `report` and `model` (what comes out).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from pathlib import Path

from .context import Context
from .environments import ROOT
from .machine import describe, sentence, versions
from .model import Figure, Outcome, to_json
from .processes import sweep
from .progress import say
from .registry import ASKED_FOR, FIGURES, Measure, choose
from .report import markdown, terminal, verdict


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    for mark in sweep():
        say(f"removed what a killed run left: {mark}")
    context = Context(arguments.scale, arguments.samples, not arguments.no_peers)
    machine = describe()
    if machine["load_at_start"] > 0.5:
        say(f"the machine is busy (load {machine['load_at_start']:.1f}): ratios will be noisy")
    outcomes: dict[str, Outcome] = {}
    for name, measure in choose(arguments.only).items():
        say(f"{name} ...")
        outcomes[name] = _measured(name, measure, context)
        say(verdict(name, outcomes[name]))
        _write(outcomes, machine, context, arguments.out)  # after each: a run that is stopped leaves what it found
    print(terminal(outcomes))
    return 0 if all(o.figure.value is not None for o in outcomes.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="holdfast_bench", description="Holdfast and its peers, side by side.")
    parser.add_argument("--only", default="", metavar="ID[,ID]", help=f"of {', '.join((*FIGURES, *ASKED_FOR))}")
    parser.add_argument("--samples", type=int, default=5, help="that each median is made of (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink the states, to try the benchmark itself")
    parser.add_argument("--no-peers", action="store_true", help="ours and the plain copy only")
    parser.add_argument("--out", type=Path, default=ROOT / "build", metavar="DIR", help="where bench.json and bench.md go")
    return parser.parse_args()


def _measured(name: str, measure: Measure, context: Context) -> Outcome:
    """What goes wrong in one figure is told, and does not keep the others from being measured."""
    try:
        return measure(context)
    except Exception as error:  # noqa: BLE001 - the run goes on; the figure does not hold
        traceback.print_exc()
        say(f"{name} could not be measured: {error}")
        return Outcome(Figure.failed("", "see the message"), (), {"problem": f"{type(error).__name__}: {error}"})


def _write(outcomes: dict[str, Outcome], machine: dict[str, object], context: Context, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = to_json(outcomes, machine=machine, versions=versions(), scale=context.scale)
    (folder / "bench.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(outcomes, sentence(machine)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
