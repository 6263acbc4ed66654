"""`make bench`, or `python -m holdfast_bench [--only ID,ID]`: measures, writes bench.json and bench.md, prints a table.

Exits with 1 when a figure could not be measured; whether one holds is what it writes. Neighbours: `registry` (which figures),
`cases` (how each is measured), `link` and `worker` (one process a measured system), `report`, `results` and `model` (what comes
out).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

from . import registry
from .context import Context
from .environments import ROOT
from .machine import describe
from .model import Figure, Outcome
from .processes import sweep
from .progress import say
from .registry import Measure
from .report import terminal, verdict
from .results import Results


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
    chosen = registry.choose(arguments.only)
    results = Results(arguments.out, chosen, registry.names(), machine, context.scale)
    for name, measure in chosen.items():
        say(f"{name} ...")
        started = time.monotonic()
        outcome = _measured(name, measure, context)
        say(verdict(name, outcome))
        results.add(name, outcome, time.monotonic() - started)
    print(terminal(results.outcomes))
    return 0 if all(o.figure.value is not None for o in results.outcomes.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="holdfast_bench", description="Holdfast and its peers, side by side.")
    parser.add_argument("--only", default="", metavar="ID[,ID]", help=f"of {', '.join(registry.names())}")
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


if __name__ == "__main__":
    sys.exit(main())
