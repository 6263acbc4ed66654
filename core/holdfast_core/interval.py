"""How often to take a snapshot: from what one costs and how often things fail (Young/Daly), within the user's limits. Pure.

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974. J. T. Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006.

Unless the user names the steps, an interval is `min_steps` times a power of two. Ranks may learn of a change a step apart; of
two such intervals the longer one's steps are also steps of the shorter one, so ranks that differ still meet. It also costs
little: an interval that is wrong by a factor of the square root of two adds 6% to the (small) share of time that is lost.
The planner (`planner.pace`) feeds this with measurements and sends the result to the sidecars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW = 86400.0  # seconds; failures further back say little about now
MOST_FAILURES = 32  # that are remembered
PRIOR_SECONDS = 30 * 86400.0  # assumed time between failures of one pod while none has been seen
_SHARE = 0.1  # of the time trained so far: the longest automatic interval
_MARGIN = 0.25  # hysteresis, in powers of two beyond the half at which rounding changes
_TIME_MARGIN = 0.1  # the same for limits in seconds: they may be missed by 7%


@dataclass(frozen=True)
class Steps:
    """Every so many steps, exactly."""

    steps: int = 1


@dataclass(frozen=True)
class Seconds:
    """At least once in so many seconds, as far as whole steps allow."""

    seconds: float


@dataclass(frozen=True)
class Auto:
    """Where the time lost to snapshots and to failures together is least."""

    min_steps: int = 1
    max_steps: int | None = None
    max_seconds: float = 600.0


Rule = Steps | Seconds | Auto


@dataclass(frozen=True)
class Measured:
    """What is known of a job. Seconds; None: not measured yet.

    `step`: median time from one step's end to the next one's, under the interval in force. `cost`: what a snapshot takes from
    the training loop. `failures` were seen in the last `observed` seconds of training.
    """

    step: float | None = None
    cost: float | None = None
    failures: int = 0
    observed: float = 0.0
    pods: int = 1


@dataclass(frozen=True)
class Interval:
    """The decision. `basis` changes when the words of `reason` are worth making anew though the steps are the same."""

    steps: int
    reason: str
    basis: str = ""


def parse(text: str) -> Rule:
    """`auto`, `8` (steps) or `30s`; raises ValueError."""
    if text == "auto":
        return Auto()
    number = float(text[:-1]) if text.endswith("s") else int(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{text!r} is not above 0")
    return Seconds(float(number)) if text.endswith("s") else Steps(int(number))


def optimum(cost: float, mtbf: float) -> float:
    """Seconds of training between two snapshots that lose the least time (Daly's estimate of higher order).

    `cost` is what a snapshot takes, `mtbf` the mean time between failures, both in seconds.
    """
    if cost >= 2 * mtbf:
        return mtbf
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def between_failures(measured: Measured) -> float:
    """The mean time between failures of the whole job, in seconds."""
    if measured.failures:
        return max(measured.observed, 60.0) / measured.failures
    return max(PRIOR_SECONDS / measured.pods, measured.observed)


def remember(failures: tuple[float, ...], now: float) -> tuple[float, ...]:
    """The times of failures that still count, with one that is seen now."""
    return (*(t for t in failures if now - t < WINDOW), now)[-MOST_FAILURES:]


def counted(failures: tuple[float, ...], since: float | None, now: float) -> tuple[int, float]:
    """How many of these count, and in how many seconds they were seen. `since`: when training began (None: not yet)."""
    if since is None:
        return 0, 0.0
    start = max(since, now - WINDOW)
    recent = [t for t in failures if t >= start]
    if len(failures) >= MOST_FAILURES and recent:
        start = max(start, recent[0])  # of those before it some may be forgotten
    return len(recent), max(0.0, now - start)


def decide(rule: Rule, measured: Measured, current: int) -> Interval:
    """The interval from now on. `current` is the one in force (0: none yet), left as it is while there is no good reason."""
    if isinstance(rule, Steps):
        return Interval(rule.steps, f"{_every(rule.steps)}, as checkpoint.every.steps says", repr(rule))
    training = _training(measured, current)
    if isinstance(rule, Seconds):
        return _by_time(rule, training, measured, current)
    if training is None or measured.cost is None:
        start = current or rule.min_steps
        return Interval(start, f"{_every(start)} until the cost of a snapshot has been measured", f"{rule!r} unmeasured")
    return _by_cost(rule, training, measured, measured.cost, current)


def _training(measured: Measured, current: int) -> float | None:
    """Seconds of a step without snapshots: with one in each step, or in each second one, the median has its share."""
    if measured.step is None or measured.cost is None:
        return measured.step
    share = measured.cost / max(1, current) if current <= 2 else 0.0
    return max(measured.step - share, measured.step / 20, 1e-9)


def _by_time(rule: Seconds, training: float | None, measured: Measured, current: int) -> Interval:
    if training is None:
        start = current or 1
        return Interval(start, f"{_every(start)} until the time of a step has been measured", f"{rule!r} unmeasured")
    power = _within(rule.seconds, training, measured, 1, _power(current, 1))
    steps = 2**power
    missed = "; a step takes longer than that" if training > rule.seconds else ""
    reason = f"{_every(steps)} of {_time(training)}, to have one each {_time(rule.seconds)}{missed}"
    return Interval(steps, reason, f"{rule!r} measured")


def _by_cost(rule: Auto, training: float, measured: Measured, cost: float, current: int) -> Interval:
    mtbf = between_failures(measured)
    ideal = optimum(cost, mtbf)
    before = _power(current, rule.min_steps)
    wanted = max(0, _settle(_log2(ideal / training / rule.min_steps), before, _MARGIN))
    limits = {
        f"maxSeconds {rule.max_seconds:g}": _within(rule.max_seconds, training, measured, rule.min_steps, before),
        "a tenth of the time trained so far": _young(measured.observed * _SHARE / training / rule.min_steps, before, wanted),
    }
    if rule.max_steps is not None:
        limits[f"maxSteps {rule.max_steps}"] = max(0, math.floor(_log2(rule.max_steps / rule.min_steps)))
    name = min(limits, key=lambda n: limits[n])
    power = min(wanted, limits[name])
    steps = rule.min_steps * 2**power
    bound = f", held down by {name}" if power < wanted else _held_up(rule, ideal, training)
    reason = (
        f"{_every(steps)}, {_time(steps * training)}: a snapshot costs training {_time(cost)}, a step takes {_time(training)}, "
        f"{_failures(measured, mtbf)}; the least time is lost with one each {_time(ideal)} (Young/Daly){bound}"
    )
    return Interval(steps, reason, f"{rule!r} {measured.failures} failures")


def _young(room: float, before: int | None, wanted: int) -> int:
    """As long as nobody knows the job: not so rare that a failure loses most of what there is.

    Never a reason to go back, and grown into by fours: each change is an event.
    """
    power = max(0, math.floor(_log2(room)))
    return before if before is not None and power < min(before + 2, wanted) else power


def _held_up(rule: Auto, ideal: float, training: float) -> str:
    return f", held up by minSteps {rule.min_steps}" if rule.min_steps > 1 and ideal < rule.min_steps * training / 1.5 else ""


def _within(seconds: float, training: float, measured: Measured, unit: int, before: int | None) -> int:
    """The highest power whose interval, snapshot included, takes no longer; 0 if there is none."""
    room = max(0.0, seconds - (measured.cost or 0.0))
    return max(0, _settle(_log2(room / training / unit) - 0.5, before, _TIME_MARGIN))


def _settle(position: float, before: int | None, margin: float) -> int:
    """The nearest whole number, but the one before as long as it is not clearly wrong."""
    if before is not None and abs(position - before) <= 0.5 + margin:
        return before
    return round(position)


def _power(steps: int, unit: int) -> int | None:
    """k, if the steps are the unit times 2^k."""
    quotient, rest = divmod(steps, unit)
    return quotient.bit_length() - 1 if quotient > 0 and not rest and not quotient & (quotient - 1) else None


def _log2(value: float) -> float:
    """Bounded: what is beyond is too far for any interval."""
    return math.log2(min(max(value, 2.0**-40), 2.0**40))


def _failures(measured: Measured, mtbf: float) -> str:
    seen = f"in {_time(measured.observed)}"
    if not measured.failures:
        return f"no failure {seen}: one in {_time(mtbf)} is assumed (one in {_time(PRIOR_SECONDS)} for each pod)"
    return f"{measured.failures} failure{'s' * (measured.failures > 1)} {seen}"


def _every(steps: int) -> str:
    return "every step" if steps == 1 else f"every {steps} steps"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 0.9995):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"
