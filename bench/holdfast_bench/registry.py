"""The figures that `make bench` measures, in the order of its table. A new one is a line here and a function in `cases`."""

from __future__ import annotations

from collections.abc import Callable

from .cases import crash, loop, memory, small, tensors
from .context import Context
from .model import Outcome

Measure = Callable[[Context], Outcome]

FIGURES: dict[str, Measure] = {
    "snapshot_return": tensors.snapshot_return,
    "loop_slowdown": loop.loop_slowdown,
    "capture_throughput": tensors.capture_throughput,
    "restore_throughput": tensors.restore_throughput,
    "many_small": small.many_small,
    "crash_to_step": crash.crash_to_step,
    "trainer_overhead": memory.trainer_overhead,
    "lora_bytes": small.lora_bytes,
}


def choose(only: str) -> dict[str, Measure]:
    """The figures of a comma-separated list, all for an empty one; raises SystemExit with those that exist."""
    names = [name for name in only.replace(" ", "").split(",") if name]
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise SystemExit(f"there is no figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    return {name: FIGURES[name] for name in names or FIGURES}
