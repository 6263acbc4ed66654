"""When each rank finished which step: lines of `seconds pid step` (CLOCK_MONOTONIC, the same in all processes)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stamp:
    """A step was finished."""

    seconds: float
    pid: int
    step: int


def put(step: int) -> None:
    """Called by a rank after a step and its save."""
    path = Path(os.environ["HOLDFAST_BENCH_STAMPS"]) / f"rank-{os.environ.get('RANK', '0')}"
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{time.monotonic():.6f} {os.getpid()} {step}\n")


def read(folder: Path, rank: int) -> list[Stamp]:
    """In order; a last line that is not whole yet is left out."""
    path = folder / f"rank-{rank}"
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").split("\n")[:-1]
    return [Stamp(float(a), int(b), int(c)) for a, b, c in (line.split() for line in lines)]


def recovered(killed: list[Stamp], other: list[Stamp], pid: int, at: float) -> float | None:
    """Seconds from `at`, when process `pid` was killed, until its successor and the other rank both finished the successor's
    first step; None as long as they did not. A step that the other rank finished in that moment with the dead does not count.
    """
    first = next((s for s in killed if s.pid != pid and s.seconds > at), None)
    if first is None:
        return None
    same = next((s for s in other if s.step == first.step and s.seconds > at and s.seconds >= first.seconds - 5.0), None)
    return max(first.seconds, same.seconds) - at if same else None
