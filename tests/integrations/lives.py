"""Run as a script: a training script lives several lives in one folder, each ended by SIGKILL but the last.

    python lives.py OPTIONS SCRIPT ARGUMENT...

The libraries are imported once; each rank of each life is a fork. A life ends at a random moment (up to 50 ms, seeded) after
its newest step that all ranks have sealed is at least what the option `--kill` says. Prints one JSON line: the step at which
each life was killed, and what the last life printed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import runpy
import signal
import socket
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch
from holdfast_core import arena
from holdfast_core.arena import ArenaError, SlotState

LIMIT = 90.0  # seconds a life


def newest(folder: Path, world: int) -> int:
    """The newest step that all ranks have sealed, -1 if there is none."""
    steps = [set[int]() for _ in range(world)]
    for path in folder.glob("rank-*.arena"):
        try:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping, memoryview(mapping) as buf:
                slots = [arena.read_slot(buf, i) for i in range(arena.read_header(buf).slots)]
        except (ArenaError, OSError, ValueError):
            continue
        steps[int(path.name[5:10])] |= {slot.step for slot in slots if slot.state is SlotState.SEALED}
    return max(set.intersection(*steps), default=-1)


def child(rank: int, output: Path, arguments: list[str]) -> None:
    if "WORLD_SIZE" in os.environ:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    code = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001 - a forked child must not return into the harness
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def life(options: argparse.Namespace, number: int, kill: int | None, draw: random.Random) -> int:
    """Ranks from start to end; returns the step at which they were killed, -1 if they ended well."""
    os.environ.update(MASTER_PORT=str(free_port()), TORCHELASTIC_RESTART_COUNT=str(number))
    pids = []
    for rank in range(options.world):
        pid = os.fork()
        if pid == 0:
            child(rank, options.folder / f"log-{number}-{rank}", options.command)
        pids.append(pid)
    deadline, at = time.monotonic() + LIMIT, -1
    while pids:
        if (at < 0 and kill is not None and newest(options.folder / "d", options.world) >= kill) or time.monotonic() > deadline:
            time.sleep(draw.uniform(0, 0.05))
            at = newest(options.folder / "d", options.world)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            pids.remove(ended)
            if status and at < 0:
                at = -2
        else:
            time.sleep(0.002)
    if at == -2 or (at < 0 and kill is not None) or time.monotonic() > deadline:
        logs = "\n".join(path.read_text() for path in sorted(options.folder.glob(f"log-{number}-*")))
        sys.exit(f"life {number} did not end as it should (kill at {kill}, {at}):\n{logs}")
    return at


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kill", type=int, action="append", default=[])
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    for module in ("torch._dynamo", *options.module):
        import_module(module)
    torch.set_num_threads(1)
    os.environ.update(HOLDFAST_DIR=str(options.folder / "d"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    if options.world > 1:
        os.environ.update(
            WORLD_SIZE=str(options.world), LOCAL_WORLD_SIZE=str(options.world), GROUP_RANK="0", MASTER_ADDR="127.0.0.1"
        )
        os.environ.update(TORCHELASTIC_RUN_ID="lives", TORCHELASTIC_MAX_RESTARTS="9", GROUP_WORLD_SIZE="1", ROLE_RANK="0")
    draw = random.Random(options.seed)
    killed = [life(options, number, kill, draw) for number, kill in enumerate([*options.kill, None])]
    last = len(options.kill)
    outputs = [(options.folder / f"log-{last}-{rank}").read_text() for rank in range(options.world)]
    print(json.dumps({"killed": killed[:-1], "output": outputs}))


if __name__ == "__main__":
    main()
