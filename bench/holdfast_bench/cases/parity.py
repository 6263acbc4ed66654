"""The figure of the erasure codes: parity of a group's images, and an image rebuilt, against the plain library call."""

from __future__ import annotations

from dataclasses import dataclass

from ..context import GIB, Context
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..progress import say
from ..stats import median, pair_ratios, rate

_TARGET = ">= 0.8 of NumPy's XOR, and of ISA-L, over whole blocks"


@dataclass(frozen=True)
class _Shape:
    """A group; `image` is in bytes. Six of 1 GiB with their parities would take more than small machines have."""

    name: str
    members: int
    parity: int
    image: int
    library: str


_SHAPES = (
    _Shape("XOR, group of 4, 1 GiB a rank", 4, 1, GIB, "NumPy"),
    _Shape("RS(4,2), group of 6, 512 MiB a rank", 6, 2, GIB // 2, "ISA-L"),
    _Shape("RS(2,2), group of 4, 512 MiB a rank", 4, 2, GIB // 2, "ISA-L"),
)


def parity_throughput(context: Context) -> Outcome:
    """Piece by piece through the layout and the code, as sidecars do it, in one thread."""
    measured = [found for shape in _SHAPES for found in _measure(shape, context)]
    ratios, _ = min(measured, key=lambda found: median(found[0]))
    value = median(ratios)
    figure = Figure(value, "of the plain library call", _TARGET, value >= 0.8, None, 1.0, ratios)
    return Outcome(figure, [row for _, row in measured])


def _measure(shape: _Shape, context: Context) -> list[tuple[list[float], Row]]:
    say(f"  {shape.name}")
    with Worker("none", "parity") as worker:
        worker.ask("open", members=shape.members, parity=shape.parity, nbytes=context.sized(shape.image))
        return [_verb(shape, worker, verb, context.samples) for verb in ("encode", "rebuild")]


def _verb(shape: _Shape, worker: Worker, verb: str, rounds: int) -> tuple[list[float], Row]:
    worker.ask(verb)
    samples = [worker.ask(verb) for _ in range(rounds)]
    bound, ours = ([s[key] for s in samples] for key in ("bound", "ours"))
    ratios = pair_ratios(bound, ours)
    size = samples[0]["nbytes"]
    figures = (rate(size, median(ours)), None, rate(size, median(bound)), median(ratios))
    return ratios, Row(shape.name, f"Holdfast: {verb}", "GB/s", *figures, f"bytes read; bound: {shape.library}, whole blocks")
