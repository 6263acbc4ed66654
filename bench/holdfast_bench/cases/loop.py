"""The figure of a training loop that saves after every step: step time with, to step time without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ..context import Context
from ..environments import Unavailable
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..progress import say
from ..stats import median, pair_ratios
from ..systems import PEERS, title
from .tensors import own_torch

OURS = "holdfast"
_OWN_WAYS = ("holdfast-lazy", "holdfast-sync", "plain")
_NOT_RIVALS = (OURS, "holdfast-sync")
_MARGIN = 0.005
_TARGET = 1.03
_ROUNDS = 7
_TRIES, _OFF = 3, 1.4  # a case is measured again if the copy's share of the step is off by that factor
_NEAR = 0.02  # of the best: such a rival is measured on, as are we
_FOCUS_SECONDS, _MORE_ROUNDS = 120.0, 60
_SETTLING = 160  # snapshots: the tuner tries each way some dozens of times
_SLOW = 1.3  # a system that slows the loop so much is measured in shorter blocks


@dataclass(frozen=True)
class Shape:
    """A model, the fraction of a step that a plain copy of its state shall take, and steps in a block."""

    fraction: float
    width: int
    steps: int
    layers: int = 4
    context: int = 64

    @property
    def name(self) -> str:
        """For the table."""
        return f"copy {100 * self.fraction:g}% of the step"


SHAPES = (Shape(0.02, 256, 6), Shape(0.005, 128, 4), Shape(0.05, 256, 10, context=32), Shape(0.10, 320, 12, context=16))

_TINY = Shape(0.05, 64, 4, layers=2, context=16)  # to try the benchmark itself


@dataclass
class Runner:
    """One system in one case."""

    name: str
    worker: Worker
    calibration: dict[str, Any]
    steps: int
    ratios: list[float] = field(default_factory=list)
    of_medians: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)  # seconds of steps
    facts: dict[str, Any] = field(default_factory=dict)

    def pair(self, save_first: bool) -> None:
        """A block with saves and one without, next to each other."""
        order = (True, False) if save_first else (False, True)
        blocks = {save: self.worker.ask("block", timeout=300.0, save=save, steps=self.steps)["seconds"] for save in order}
        self.ratios += pair_ratios([fmean(blocks[True])], [fmean(blocks[False])])
        self.of_medians += pair_ratios([median(blocks[True])], [median(blocks[False])])
        self.without += blocks[False]
        if len(self.ratios) == 1 and self.ratios[0] > _SLOW:
            self.steps = max(2, self.steps // 4)

    @property
    def slowdown(self) -> float:
        """The median over the pairs of blocks of the ratio of mean step times: what hits some steps only counts in full."""
        return median(self.ratios)

    @property
    def fraction(self) -> float:
        """Of a step, what a plain copy takes, in the steps that were measured in the end."""
        return float(self.calibration["copy"]) / median(self.without)


def loop_slowdown(context: Context) -> Outcome:
    """Four cases; the claim is about the one with 2%, and about no case being worse than the best of the others."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    verdicts: list[bool] = []
    main: tuple[list[float], float | None, float | None] = ([], None, None)
    shapes = SHAPES if context.scale >= 1 else (_TINY,)
    for shape in shapes:
        say(f"  {shape.name}")
        runners, problems = _measure_as_asked(context, shape)
        ours = next((r for r in runners if r.name == OURS), None)
        if ours is None:
            raise RuntimeError(problems[OURS])
        best = min((r.slowdown for r in runners if r.name not in _NOT_RIVALS), default=None)
        verdicts.append(best is not None and ours.slowdown <= best + _MARGIN)
        rows += _rows(shape, ours, runners, problems)
        details[shape.name] = {r.name: _detail(r) for r in runners}
        if shape is shapes[0]:
            peer = min((r.slowdown for r in runners if r.name in PEERS), default=None)
            main = (ours.ratios, peer, next((r.slowdown for r in runners if r.name == "plain"), None))
    samples, peer, bound = main
    value = median(samples)
    target = f"<= {_TARGET} where a plain copy takes 2% of the step; in every case <= the best other + {_MARGIN}"
    figure = Figure(value, "x the step time", target, value <= _TARGET and all(verdicts), peer, bound, samples)
    return Outcome(
        figure, rows, {"no_worse_than_the_best": dict(zip((s.name for s in shapes), verdicts, strict=True)), **details}
    )


def _measure_as_asked(context: Context, shape: Shape) -> tuple[list[Runner], dict[str, str]]:
    """A machine that was slower while the batch was chosen than later is another case than the one that was asked for."""
    for _ in range(_TRIES):
        runners, problems = _measure(context, shape)
        found = next((r.fraction for r in runners if r.name == OURS), shape.fraction)
        if context.scale < 1 or 1 / _OFF < found / shape.fraction < _OFF:
            break
        say(f"  the copy took {100 * found:.1f}% of the steps: again")
    return runners, problems


def _measure(context: Context, shape: Shape) -> tuple[list[Runner], dict[str, str]]:
    """All systems wait in processes of their own and take turns."""
    problems: dict[str, str] = {}
    with ExitStack() as stack:
        runners: list[Runner] = []
        calibration: dict[str, Any] | None = None
        for name in ("plain", OURS, *(n for n in _OWN_WAYS if n != "plain"), *context.only(PEERS)):
            try:
                runner = _begin(stack, name, shape, calibration)
            except Unavailable as error:
                problems[name] = str(error)
                say(f"  {title(name)} cannot run: {error}")
                continue
            calibration = calibration or runner.calibration
            runners.append(runner)
        rounds = max(_ROUNDS, context.samples) if context.scale >= 1 else context.samples
        return _take_turns(runners, rounds, problems), problems


def _begin(stack: ExitStack, name: str, shape: Shape, known: dict[str, Any] | None) -> Runner:
    worker = stack.enter_context(Worker(name, "loop"))
    opening = {"layers": shape.layers, "width": shape.width, "context": shape.context}
    if known is None or own_torch(name):
        worker.ask("open", **opening)
        known = worker.ask("calibrate", timeout=300.0, fraction=shape.fraction)
        if own_torch(name) or name == "plain":
            say(f"  {title(name)}: a step of {1e3 * known['step']:.0f} ms, a copy of {1e3 * known['copy']:.1f} ms")
    else:
        worker.ask("open", batch=known["batch"], **opening)
    runner = Runner(name, worker, known, shape.steps)
    _settle(runner)
    return runner


def _settle(runner: Runner) -> None:
    """Warm up; Holdfast's own until it has chosen how to copy."""
    taken = 0
    while taken < (_SETTLING if runner.name == OURS else 3):
        runner.worker.ask("block", timeout=300.0, save=True, steps=10 if runner.name == OURS else 2)
        taken += 11 if runner.name == OURS else 3
        if runner.name == OURS and _settled(runner.worker.ask("facts")["reason"]):
            return


def _settled(reason: str) -> bool:
    return not reason.startswith(("not measured yet", "choosing again"))


def _take_turns(runners: Sequence[Runner], rounds: int, problems: dict[str, str]) -> list[Runner]:
    """Everybody so many rounds; then ours and those that come near the best go on until `_FOCUS_SECONDS` are over."""
    running = list(runners)
    for turn in range(rounds):
        running = _turn(running, turn, problems)
    start = time.monotonic()
    for turn in range(rounds, rounds + _MORE_ROUNDS):
        near = _near_the_best(running)
        if time.monotonic() - start > _FOCUS_SECONDS or len(near) < 2:
            break
        lost = {r.name for r in near} - {r.name for r in _turn(near, turn, problems)}
        running = [r for r in running if r.name not in lost]
    for runner in running:
        with suppress(Unavailable):
            runner.facts = runner.worker.ask("facts")
    return running


def _turn(runners: Sequence[Runner], turn: int, problems: dict[str, str]) -> list[Runner]:
    """One pair of blocks each; returns those that are still alive."""
    alive = []
    for runner in runners:
        try:
            runner.pair(save_first=turn % 2 == 0)
            alive.append(runner)
        except Unavailable as error:
            problems[runner.name] = str(error)
    return alive


def _near_the_best(runners: Sequence[Runner]) -> list[Runner]:
    """Ours, and the rivals that may turn out to be the best: noise decides among few samples of them."""
    best = min((r.slowdown for r in runners if r.name not in _NOT_RIVALS), default=None)
    near = [r for r in runners if best is not None and r.name not in _NOT_RIVALS and r.slowdown <= best + _NEAR]
    return [r for r in runners if r.name == OURS] + near


def _rows(shape: Shape, ours: Runner, runners: Sequence[Runner], problems: dict[str, str]) -> list[Row]:
    plain = next((r.slowdown for r in runners if r.name == "plain"), None)
    unit = "x step time"
    fraction = 100 * ours.fraction
    rows = [
        Row(
            shape.name,
            title(OURS),
            unit,
            ours.slowdown,
            None,
            plain,
            note=f"measured {fraction:.1f}%; {ours.facts['mode']}: {ours.facts['reason']}",
        )
    ]
    for runner in runners:
        if runner.name != OURS:
            note = f"torch of its own, copy {100 * runner.fraction:.1f}% of its step" if own_torch(runner.name) else ""
            ratio = ours.slowdown / runner.slowdown
            rows.append(Row(shape.name, title(runner.name), unit, ours.slowdown, runner.slowdown, plain, ratio, note))
    return rows + [Row(shape.name, title(name), unit, note=problem) for name, problem in problems.items()]


def _detail(runner: Runner) -> dict[str, Any]:
    return {
        "ratios": runner.ratios,
        "ratios_of_median_steps": runner.of_medians,
        "slowdown": runner.slowdown,
        "calibration": runner.calibration,
        "facts": runner.facts,
    }
