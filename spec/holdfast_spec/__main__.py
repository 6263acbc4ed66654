"""`make model`: explores worlds, hunts mutations, replays traces.

python -m holdfast_spec [--small] [--world NAME] [--states N] [--json FILE] [--save FILE]
python -m holdfast_spec mutations [NAME ...]
python -m holdfast_spec replay FILE ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from . import mutations, replay, script, worlds
from .explore import Explorer, Result
from .world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if no promise was broken, and every mutation was caught."""
    parser = argparse.ArgumentParser(prog="holdfast_spec", description="the commit and recovery protocol, explored")
    parser.add_argument("what", nargs="?", default="explore", choices=["explore", "mutations", "replay"])
    parser.add_argument("names", nargs="*", help="mutations, or files with traces")
    parser.add_argument("--small", action="store_true", help="the worlds of `make test`")
    parser.add_argument("--world", action="append", default=[], help="only this one")
    parser.add_argument("--states", type=int, default=0, help="stop a world after so many states")
    parser.add_argument("--jobs", type=int, default=2, help="worlds that are explored at a time")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--save", type=Path, help="append counterexamples to this file as tests")
    options = parser.parse_args(arguments)
    run = {"explore": _explore, "mutations": _mutations, "replay": _replay}[options.what]
    return run(options)


# --- worlds


def _explore(options: argparse.Namespace) -> int:
    chosen = _chosen(options)
    started, results = time.perf_counter(), []
    with ProcessPoolExecutor(max(1, min(options.jobs, len(chosen)))) as pool:
        waiting = {pool.submit(explored, world.name, options.states): world for world in chosen}
        for done in as_completed(waiting):
            results.append(done.result())
            _report(waiting[done], results[-1], options.save)
    seconds = time.perf_counter() - started
    states, broken = sum(r.states for r in results), sum(bool(r.violation) for r in results)
    _say(f"{states:,} states in {seconds:.0f} s, {broken} violations")
    if options.json:
        found = {"states": states, "seconds": seconds, "violations": broken, "worlds": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if broken else 0


def _chosen(options: argparse.Namespace) -> list[World]:
    known = {w.name: w for w in (*worlds.SMALL, *worlds.LARGE)}
    unknown = [name for name in options.world if name not in known]
    if unknown:
        raise SystemExit(f"there is no world {unknown[0]!r}: choose from {', '.join(known)}")
    default = worlds.SMALL if options.small else (*worlds.SMALL, *worlds.LARGE)
    return [known[n] for n in options.world] or sorted(default, key=lambda w: -w.limit)


def explored(name: str, limit: int) -> Result:
    """One world, by name; for a process of its own."""
    world = next(w for w in (*worlds.SMALL, *worlds.LARGE) if w.name == name)
    return Explorer(world, limit, _progress).run()


def _progress(result: Result) -> None:
    rate = result.states / max(result.seconds, 1e-9)
    line = f"  {result.world}: {result.states:,} states, depth {result.depth}, {rate:,.0f} states/s"
    print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)


def _report(world: World, result: Result, save: Path | None) -> None:
    extent = "all" if result.complete else "the first"
    verdict = result.violation or "nothing broken"
    _say(f"{world.name}: {extent} {result.states:,} states, depth {result.depth}, {result.seconds:.1f} s: {verdict}")
    if result.violation:
        _say(script.text(world, result.script))
        if save is not None:
            with save.open("a") as file:
                file.write(script.test_of(world, f"found_in_{world.name}", result.violation, result.script))


# --- mutations


def _mutations(options: argparse.Namespace) -> int:
    chosen = [m.name for m in mutations.MUTATIONS if not options.names or m.name in options.names]
    missed = []
    with ProcessPoolExecutor(max(1, min(options.jobs, len(chosen)))) as pool:
        for name, result in zip(chosen, pool.map(hunted, chosen), strict=True):
            missed += [] if result.violation else [name]
            verdict = f"caught: {result.violation}" if result.violation else "NOT CAUGHT"
            _say(f"{name}: {verdict} ({result.states:,} states, {result.seconds:.1f} s)")
    caught = len(chosen) - len(missed)
    _say(f"{caught} of {len(chosen)} mutations caught")
    if options.json:
        options.json.write_text(json.dumps({"mutations": len(chosen), "caught": caught, "missed": missed}))
    return 1 if missed else 0


def hunted(name: str) -> Result:
    """One mutation, by name; for a process of its own."""
    return mutations.hunt(next(m for m in mutations.MUTATIONS if m.name == name))


# --- traces


def _replay(options: argparse.Namespace) -> int:
    problems = replay.check_files(map(Path, options.names))
    for problem in problems:
        _say(problem)
    _say(f"{len(problems)} promises broken")
    return 1 if problems else 0


def _say(line: str) -> None:
    print(f"\r{line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
