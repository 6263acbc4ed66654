"""Run as a script: training scripts live several lives, each ended by SIGKILL but the last, and once a life without a fault.

    python lives.py CASES      a JSON file: {"modules": [...], "cases": [{folder, world, kills, ports, command}, ...]}

The libraries are imported once; each rank of each life is a fork. A life ends at a random moment after its newest step that all
ranks have sealed has reached the next number of `kills`, and has a MASTER_PORT of its own. Prints a JSON line for each case: at
which steps it was killed, the output of its last life and that of the life without a fault.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import runpy
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from holdfast_core import arena
from holdfast_core.arena import ArenaError, SlotState

LIMIT = 60.0  # seconds a life
FAILED = -2
MODULES = ("torch._dynamo", "holdfast.checkpointer", "torch.nn.parallel", "torch.distributed.checkpoint")


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


def child(output: Path, arguments: list[str]) -> None:
    """A rank: never returns."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(LIMIT - 10)  # a rank that hangs says where
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    code = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must not return into the harness
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def environment(folder: Path, number: int, world: int, port: int) -> None:
    """As torchrun sets it; nothing for one rank."""
    os.environ.update(HOLDFAST_DIR=str(folder), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_RANK")
    for name in (*names, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    if world > 1:
        size = str(world)
        os.environ.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, GROUP_RANK="0", GROUP_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(TORCHELASTIC_RUN_ID="lives", TORCHELASTIC_MAX_RESTARTS="9")


def life(folder: Path, number: int, case: dict[str, Any], kill: int | None, draw: random.Random) -> int:
    """Ranks from start to end; returns the step at which they were killed, -1 if they ended well, else FAILED."""
    world = case["world"]
    environment(folder, number, world, case["ports"].pop())
    pids = []
    for rank in range(world):
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), ROLE_RANK=str(rank))
        pid = os.fork()
        if pid == 0:
            child(folder.with_name(f"{folder.name}-log-{number}-{rank}"), case["command"])
        pids.append(pid)
    deadline, at = time.monotonic() + LIMIT, -1
    while pids:
        late = time.monotonic() > deadline
        if at == -1 and (late or (kill is not None and newest(folder, world) >= kill)):
            time.sleep(draw.uniform(0, 0.02))
            at = FAILED if late else newest(folder, world)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            time.sleep(0.001)
            continue
        pids.remove(ended)
        if status and at == -1:
            at = FAILED
    return FAILED if kill is not None and at == -1 else at


def output(folder: Path, number: int) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.parent.glob(f"{folder.name}-log-{number}-*")))


def run(case: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    killed: list[int] = []
    for name, kills in (("reference", []), ("faults", case["kills"])):
        folder = Path(case["folder"], name)
        for number, kill in enumerate([*kills, None]):
            killed.append(life(folder, number, case, kill, draw))
            if killed[-1] == FAILED:
                return {
                    "error": f"life {number} of {name} did not end as it should (kill at {kill}):\n{output(folder, number)}"
                }
    return {
        "killed": killed[1:-1],
        "reference": output(Path(case["folder"], "reference"), 0),
        "faults": output(Path(case["folder"], "faults"), len(case["kills"])),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    for module in (*MODULES, *request["modules"]):
        import_module(module)
    torch.set_num_threads(1)
    draw = random.Random(request["seed"])
    for case in request["cases"]:
        print(json.dumps(run(case, draw)), flush=True)


if __name__ == "__main__":
    main()
