"""Run as a script: ranks that snapshot as fast as they can are killed at random moments, again and again.

    python crash_harness.py FOLDER SEED ROUNDS WORLD_SIZE

torch is imported once; each rank of each round is a fork. A rank's state is a function of (step, rank), so that what is
restored can be checked byte by byte. Ranks do not wait for each other: they drift apart, as far as the slots let them. Prints
one JSON line a round: the step that each rank restored, and the steps that each had sealed in the round before.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import holdfast
import torch
from holdfast_core import arena
from holdfast_core.arena import SlotState

SIZE = 50_000


def value(step: int, rank: int) -> torch.Tensor:
    return torch.full((SIZE,), step * 1000 + rank, dtype=torch.int64)


def check(tensor: torch.Tensor, step: int, rank: int) -> None:
    if not torch.equal(tensor, value(step, rank)):
        os.write(2, f"rank {rank}: step {step} holds {tensor.unique().tolist()[:5]}\n".encode())
        os._exit(1)


def rank_main(rank: int, report: int) -> None:
    """Restore, tell, then train until killed."""
    os.environ["RANK"] = str(rank)
    x, y = torch.zeros(SIZE, dtype=torch.int64), torch.zeros(SIZE, dtype=torch.int64)
    ckpt = holdfast.Checkpointer(x=x, y=y)
    step = ckpt.restore()
    if step >= 0:
        check(x, step, rank)
        check(y, step, rank)
    os.write(report, f"{rank} {step}\n".encode())
    while True:
        step += 1
        x.copy_(value(step, rank))
        y.copy_(value(step, rank))
        ckpt.snapshot(step)


def sealed(folder: Path, rank: int) -> list[int]:
    found = []
    for path in folder.glob(f"rank-{rank:05d}.g*.arena"):
        raw = memoryview(bytearray(path.read_bytes()))
        found += [s.step for i in range(3) for s in [arena.read_slot(raw, i)] if s.state is SlotState.SEALED]
    return sorted(found)


def one_round(folder: Path, world: int, number: int, draw: random.Random) -> dict[str, object]:
    before = [sealed(folder, r) for r in range(world)] if folder.exists() else []
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    read_end, write_end = os.pipe()
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                rank_main(rank, write_end)
            except BaseException as error:  # noqa: BLE001 - a forked child must not return into the harness
                os.write(2, f"rank {rank}: {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        pids.append(pid)
    os.close(write_end)
    lines: list[str] = []
    with os.fdopen(read_end) as reports:
        lines = [reports.readline() for _ in range(world)]
        time.sleep(draw.uniform(0, 0.08))
        for pid in draw.sample(pids, world):
            os.kill(pid, signal.SIGKILL)
            time.sleep(draw.choice([0, 0, 0.005]))
        ends = [os.waitpid(pid, 0)[1] for pid in pids]
    restored = dict(map(int, line.split()) for line in lines if line.strip())
    return {
        "before": before,
        "restored": [restored.get(r) for r in range(world)],
        "killed": [e == signal.SIGKILL for e in ends],
    }


def main() -> None:
    folder, seed, rounds, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    os.environ.update(HOLDFAST_DIR=str(folder), WORLD_SIZE=str(world), MASTER_PORT="1")
    draw = random.Random(seed)
    for number in range(rounds):
        print(json.dumps(one_round(folder, world, number, draw)), flush=True)


if __name__ == "__main__":
    main()
