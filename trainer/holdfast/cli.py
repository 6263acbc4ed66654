"""The `holdfast` command. `holdfast run` trains on this machine, with no Kubernetes."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from holdfast_core import __version__, interval


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.module:
        return _run(arguments, [sys.executable, "-m", *arguments.module], arguments.module[0])
    if not arguments.script:
        _parser().error("no script is given: holdfast run -n 2 train.py")
    if not Path(arguments.script).is_file():
        sys.stderr.write(f"holdfast: {arguments.script} is not a file\n")
        return 127
    return _run(arguments, [sys.executable, arguments.script, *arguments.arguments], Path(arguments.script).stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast", description="Keeps PyTorch training alive.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train on this machine with sidecar, launcher and planner as local processes")
    run.add_argument("-n", "--processes", type=_positive, default=1, help="ranks to start (default: 1)")
    run.add_argument(
        "--every", type=_every, default="1", metavar="N|Ns|auto",
        help="a snapshot every N steps (default: 1), every N seconds (30s), or as its cost and the failures suggest (auto)",
    )  # fmt: skip
    run.add_argument("--store", metavar="DIR", help="also keep snapshots in this directory, and resume from it")
    run.add_argument("--every-seconds", type=float, default=60.0, metavar="S", help="how often into the store (default: 60)")
    run.add_argument("--keep", type=_positive, default=3, metavar="K", help="snapshots kept in the store (default: 3)")
    run.add_argument("--max-restarts", type=int, default=20, metavar="R", help="failures within an hour before giving up")
    run.add_argument("--hang-seconds", type=float, default=300.0, metavar="S", help="no finished step for so long is a failure")
    run.add_argument("-v", "--verbose", action="store_true", help="show every event and the sidecar's log")
    run.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module instead, with the arguments after it")
    run.add_argument("script", nargs="?", help="the training script")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _every(text: str) -> interval.Rule:
    try:
        return interval.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps (8), of seconds (30s), or auto") from error


def _run(arguments: argparse.Namespace, command: Sequence[str], name: str) -> int:
    missing = [m for m in ("holdfast_sidecar", "aiohttp", "fsspec") if importlib.util.find_spec(m) is None]
    if missing:
        sys.stderr.write(f"holdfast: {missing[0]} is not installed: pip install 'holdfast[sidecar]'\n")
        return 2
    from holdfast_core.planner import Policy

    from ._run.driver import Options, run

    policy = Policy(restart_limit=arguments.max_restarts, hang_deadline=arguments.hang_seconds)
    store = str(Path(arguments.store).resolve()) if arguments.store else None
    options = Options(
        command, name, arguments.processes, policy, store, arguments.every_seconds, arguments.keep, arguments.verbose,
        arguments.every,
    )  # fmt: skip
    return run(options)
