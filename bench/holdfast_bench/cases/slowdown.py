"""What replication to peers' RAM takes from a training loop: step time with it, to step time without, both with a snapshot
after every step.

A job of two pods, a real one (sidecars with mTLS, launchers, DDP over gloo, one thread a rank), trains in blocks of steps.
Between two blocks its sidecars are started anew, with peers or without: the same trainers and the same memory in both, since
two jobs beside each other differed by some percent whatever they did. With peers, each pod holds a copy of the other's newest
snapshot, under a limit on the bytes that it may send. All of it shares this machine's processors with the trainers, as
processes of equal weight: a node of a cluster has some to spare, or else weighs containers by their CPU requests.

The limit is what bounds the slow-down. It is chosen once, in the case that the claim is about, and is then the same everywhere:
what a case with shorter steps pays is how many steps the protected one is behind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from holdfast_core.config import PeersConfig
from holdfast_sidecar.group.protect import PACE_SECONDS

from ..context import Context
from ..environments import Unavailable
from ..model import Figure, Outcome, Row
from ..pods import Pods
from ..progress import say
from ..stats import maybe_median, median, pair_ratios
from .loop import SHAPES, Shape

_TARGET = 1.05
_PODS = 2
_SLOTS = 4  # the protected step's, that of the one on its way, the newest, the one that is being written
_LIMIT_STEPS = 12  # that a snapshot takes on the line, in the case of the claim
_BLOCK, _LEAST = 2, 8  # rounds in a block; steps in one
_LEAD_IN, _SETTLING = 4, 60.0  # steps that are not timed, again and again; seconds at most
_ROUNDS, _FEWER = 10, 4  # of the claim's case, of the others
_TRIES, _CLOSE, _LARGEST = 6, 0.05, 512
_TINY = Shape(0.05, 64, 4, layers=2, context=16)  # to try the benchmark itself


@dataclass(frozen=True)
class Case:
    """A shape as it was found to be on this machine: `step` and `copy` are seconds, `limit` is bytes a second and pod."""

    shape: Shape
    batch: int
    step: float
    copy: float
    nbytes: int
    limit: int

    @property
    def steps_on_the_line(self) -> float:
        """How long a snapshot takes under the limit."""
        return self.nbytes / self.limit / self.step

    @property
    def block(self) -> int:
        """Steps in a block."""
        return max(_LEAST, math.ceil(_BLOCK * max(self.steps_on_the_line, PACE_SECONDS / self.step)))


@dataclass(frozen=True)
class Block:
    """So many steps in one job. `seconds` are those of the slower rank in each step, `cpu` those that the sidecars used,
    `behind` is by how many steps the protected one was behind the newest, each time that the coordinator's sidecar spoke."""

    seconds: list[float]
    elapsed: float
    skipped: int
    cpu: float
    rounds: float
    received: float
    behind: list[int]


@dataclass
class Measured:
    """The blocks of one case, in pairs."""

    case: Case
    on: list[Block] = field(default_factory=list)
    off: list[Block] = field(default_factory=list)

    def ratios(self, of: Callable[[Sequence[float]], float]) -> list[float]:
        """Pair by pair. Of the mean steps: what hits some steps only counts in full; of the medians: it does not."""
        return pair_ratios([of(block.seconds) for block in self.on], [of(block.seconds) for block in self.off])


def replication_slowdown(context: Context) -> Outcome:
    """Four cases, as in `loop_slowdown`; the claim is about the one where a plain copy takes 2% of the step."""
    cases: list[Measured] = []
    for shape in SHAPES if context.scale >= 1 else (_TINY,):
        say(f"  {shape.name}")
        rounds = context.samples if context.scale < 1 else _FEWER if cases else max(_ROUNDS, context.samples)
        cases.append(_measure(shape, rounds, cases[0].case.limit if cases else None))
    main = cases[0]
    samples = main.ratios(fmean)
    value = median(samples)
    target = (
        f"<= {_TARGET} where a plain copy takes 2% of the step; limit: {main.case.limit / 1e6:.0f} MB/s a pod, "
        f"by which a snapshot takes {main.case.steps_on_the_line:.0f} steps on the line"
    )
    figure = Figure(value, "x the step time", target, value <= _TARGET, samples=samples)
    return Outcome(figure, [_row(found) for found in cases], {found.case.shape.name: _details(found) for found in cases})


def _measure(shape: Shape, rounds: int, limit: int | None) -> Measured:
    """Captures are synchronous: what the trainers choose for themselves could change from block to block."""
    off, environ = PeersConfig(parity=0), {"HOLDFAST_CAPTURE": "sync", "OMP_NUM_THREADS": "1"}
    with Pods("two pods", _PODS, "slowdown", off, _SLOTS, environ) as job:
        found = Measured(_calibrate(job, shape, limit))
        on = PeersConfig(group_size=_PODS, parity=1, bandwidth=found.case.limit)
        for number in range(rounds):
            for peers in (on, off) if number % 2 == 0 else (off, on):
                job.restart(peers)
                _settle(job, protects=peers is on)
                (found.on if peers is on else found.off).append(_block(job, found.case.block))
    return found


def _opening(shape: Shape) -> dict[str, int]:
    return {"layers": shape.layers, "width": shape.width, "context": shape.context}


def _calibrate(job: Pods, shape: Shape, limit: int | None) -> Case:
    """Choose the batch so that a plain copy of the state takes the shape's fraction of a step without snapshots."""
    nbytes = int(job.ask("open", **_opening(shape))[0]["nbytes"])
    size, copy = 1, math.inf
    for _ in range(_TRIES):
        job.ask("batch", size=size)
        seen = job.ask("look")
        step, copy = max(s["step"] for s in seen), min([copy, *(s["copy"] for s in seen)])
        better = min(_LARGEST, max(1, round(size * copy / shape.fraction / step)))
        if abs(copy / shape.fraction / step - 1) < _CLOSE or better == size:
            break
        size = better
    say(f"  batch {size}: a step of {1e3 * step:.0f} ms, a copy of {1e3 * copy:.1f} ms, {nbytes / 1e6:.1f} MB")
    return Case(shape, size, step, copy, nbytes, limit or int(nbytes / (_LIMIT_STEPS * step)))


def _settle(job: Pods, protects: bool) -> None:
    """The trainers find their new sidecars, and steps are committed, and protected, as before. Raises Unavailable."""
    begun = -1
    deadline = time.monotonic() + _SETTLING
    while time.monotonic() < deadline:
        last = job.ask("block", steps=_LEAD_IN)[0]["last"]
        begun = last if begun < 0 else begun
        if job.committed() > begun and (not protects or _rounds(job) >= 1):
            return
    raise Unavailable(f"no step was {'protected' if protects else 'committed'} in {_SETTLING:.0f} s")


def _block(job: Pods, steps: int) -> Block:
    rounds, received, cpu, started = _rounds(job), _received(job), job.cpu_seconds(), time.monotonic()
    ranks = job.ask("block", steps=steps)
    ended = time.monotonic()
    told = [s for s in job.told(started, ended) if s["protected"] and s["committed"]]
    return Block(
        [max(both) for both in zip(*(r["seconds"] for r in ranks), strict=True)],
        ended - started,
        sum(r["skipped"] for r in ranks),
        job.cpu_seconds() - cpu,
        _rounds(job) - rounds,
        _received(job) - received,
        [s["committed"]["step"] - s["protected"]["step"] for s in told],
    )


def _rounds(job: Pods) -> float:
    """Steps that were protected so far."""
    return job.counted("holdfast_replications_total") / _PODS


def _received(job: Pods) -> float:
    """Bytes that a pod received so far."""
    return job.counted("holdfast_parity_received_bytes_total") / _PODS


def _row(found: Measured) -> Row:
    case, on, off = found.case, found.on, found.off
    elapsed, steps = sum(b.elapsed for b in on), sum(len(b.seconds) for b in on)
    cpu = (sum(b.cpu for b in on) - sum(b.cpu for b in off)) / steps / _PODS
    behind = [n for b in on for n in b.behind]
    note = (
        f"copy {100 * case.copy / median(s for b in off for s in b.seconds):.1f}% of the step; "
        f"limit {case.limit / 1e6:.0f} MB/s a pod: {case.steps_on_the_line:.0f} steps for {case.nbytes / 1e6:.0f} MB; "
        f"{sum(b.rounds for b in on) / elapsed:.2f} steps protected a second, {maybe_median(behind) or 0:.0f} steps behind the "
        f"newest (at most {max(behind, default=0)}), {sum(b.received for b in on) / elapsed / 1e6:.0f} MB/s a pod; "
        f"{sum(b.skipped for b in on)} of {steps * _PODS} snapshots skipped; a sidecar takes {1e3 * cpu:.1f} ms of a processor "
        f"for it in a step; of median steps: {median(found.ratios(median)):.3f}"
    )
    return Row(case.shape.name, "Holdfast: two pods, mTLS", "x step time", median(found.ratios(fmean)), note=note)


def _details(found: Measured) -> dict[str, Any]:
    return {
        "ratios": found.ratios(fmean),
        "ratios_of_median_steps": found.ratios(median),
        "batch": found.case.batch,
        "step": found.case.step,
        "copy": found.case.copy,
        "limit": found.case.limit,
        "nbytes": found.case.nbytes,
        "with_peers": [asdict(block) for block in found.on],
        "without": [asdict(block) for block in found.off],
    }
