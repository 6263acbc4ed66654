"""The figures that `make bench` measures, in the order of its table, and those that it measures only when they are asked for by
name. A new one is a line here and a function in `cases`."""

from __future__ import annotations

from collections.abc import Callable

from .cases import crash, loop, memory, model, nodes, parity, pytorchjob, replication, slowdown, small, tensors
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
    "node_to_step": nodes.node_to_step,
    "spare_to_step": nodes.spare_to_step,
    "detect_node": nodes.detect_node,
    "parity_throughput": parity.parity_throughput,
    "replication_throughput": replication.replication_throughput,
    "replication_slowdown": slowdown.replication_slowdown,
    "parity_memory": replication.parity_memory,
    "model": model.model,
}
ASKED_FOR: dict[str, Measure] = {
    "pytorchjob": pytorchjob.pytorchjob,
}


def names() -> tuple[str, ...]:
    """All that there are, in the order of the table."""
    return (*FIGURES, *ASKED_FOR)


def choose(only: str) -> dict[str, Measure]:
    """The figures of a comma-separated list, FIGURES for an empty one; raises SystemExit with those that exist."""
    known = {**FIGURES, **ASKED_FOR}
    wanted = [name for name in only.replace(" ", "").split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"there is no figure {unknown[0]!r}: choose from {', '.join(known)}")
    return {name: known[name] for name in wanted or FIGURES}
