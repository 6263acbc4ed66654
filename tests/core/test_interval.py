"""How often to take a snapshot: the optimum is one, limits hold, and small changes change nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from holdfast_core import arena, interval
from holdfast_core.interval import Auto, Measured, Seconds, Steps, decide
from hypothesis import assume, given
from hypothesis import strategies as st

POSITIVE = st.floats(1e-5, 1e4)
RULES = st.one_of(
    st.builds(Seconds, st.floats(0.01, 1e5)),
    st.builds(lambda low, more, s: Auto(low, low + more, s), st.integers(1, 50), st.integers(0, 10**6), st.floats(0.01, 1e5)),
    st.builds(Auto, st.integers(1, 50), st.none(), st.floats(0.01, 1e5)),
)
MEASURED = st.builds(
    Measured, POSITIVE, st.floats(0, 1e3), st.integers(0, 32), st.floats(0, interval.WINDOW), st.integers(1, 4096)
)


def lost(between: float, cost: float, mtbf: float) -> float:
    """Daly's complete model: wall time for a second of training, if failures come as in a Poisson process."""
    return mtbf * math.expm1((between + cost) / mtbf) / between


@given(st.floats(1e-3, 1e3), st.floats(1.0, 1e7))
def test_no_other_interval_loses_clearly_less(cost: float, mtbf: float):
    assume(cost < mtbf / 2)
    best = interval.optimum(cost, mtbf)
    assert best > 0
    for factor in (0.1, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0, 10.0):
        assert lost(best, cost, mtbf) <= lost(best * factor, cost, mtbf) * 1.002


def test_the_optimum_is_youngs_for_cheap_snapshots():
    assert interval.optimum(0.01, 86400.0) == pytest.approx(math.sqrt(2 * 0.01 * 86400.0), rel=1e-3)
    assert interval.optimum(0.0, 86400.0) == 0.0
    assert interval.optimum(500.0, 100.0) == 100.0


@given(RULES, MEASURED, st.integers(0, 2**20))
def test_limits_hold_and_intervals_are_nested(rule: interval.Rule, measured: Measured, current: int):
    steps = decide(rule, measured, current).steps
    unit = rule.min_steps if isinstance(rule, Auto) else 1
    assert steps % unit == 0
    assert (steps // unit).bit_count() == 1, "a power of two"
    if isinstance(rule, Auto):
        assert steps >= rule.min_steps
        assert rule.max_steps is None or steps <= rule.max_steps
    limit = rule.max_seconds if isinstance(rule, Auto) else rule.seconds
    assert measured.step is not None
    training = max(measured.step - (measured.cost or 0.0), measured.step / 20)  # at least
    assert steps == unit or steps * training <= limit * 1.08


@given(RULES, MEASURED)
def test_a_decision_is_final_while_nothing_changes(rule: interval.Rule, measured: Measured):
    """The same training, seen again under the interval that was decided."""
    current = decide(rule, measured, 8).steps
    assume(current > 2)  # below, the median step holds a part of the cost
    assert decide(rule, measured, current) == decide(rule, measured, decide(rule, measured, current).steps)
    assert decide(rule, measured, current).steps == current


@given(RULES, MEASURED, st.lists(st.floats(0.97, 1.03), min_size=2, max_size=20))
def test_noise_does_not_make_it_flap(rule: interval.Rule, measured: Measured, noise: list[float]):
    """Whatever the measurements' noise of 3% does, it is at most one change, not one back and forth."""
    assume(measured.cost is not None and measured.step is not None and measured.cost < measured.step)
    seen, current = [], 64 * (rule.min_steps if isinstance(rule, Auto) else 1)
    for factor in noise:
        assert measured.step is not None
        current = decide(rule, replace(measured, step=measured.step * factor), current).steps
        seen.append(current)
    changes = [a != b for a, b in itertools.pairwise(seen)]
    assume(min(seen) > 2)
    assert sum(changes) <= 1, seen


@pytest.mark.parametrize("rule", [Auto(max_seconds=1e6), Seconds(60.0), Auto(max_seconds=60.0)])
def test_no_place_is_left_where_a_jitter_of_three_percent_makes_it_flap(rule: interval.Rule):
    """Through a whole octave of step times, so that every rounding is met at its edge."""
    for hundredth in range(100):
        measured = Measured(step=2 ** (hundredth / 100), cost=0.1, observed=86400.0)
        current = decide(rule, measured, 0).steps
        seen = []
        for factor in (0.97, 1.03) * 4:
            assert measured.step is not None
            current = decide(rule, replace(measured, step=measured.step * factor), current).steps
            seen.append(current)
        assert len(set(seen[1:])) == 1, (hundredth, seen)


@given(st.integers(0, 12), st.integers(0, 12))
def test_ranks_that_learn_of_a_change_a_step_apart_still_meet(before: int, after: int):
    """The steps of the longer interval are steps of the shorter one."""
    longer, shorter = 2 ** max(before, after), 2 ** min(before, after)
    common = [s for s in range(2 * longer) if arena.is_due(longer, s) and arena.is_due(shorter, s)]
    assert len(common) == 2


def test_steps_are_taken_as_given():
    assert decide(Steps(7), Measured(), 4).steps == 7
    assert "every 7 steps" in decide(Steps(7), Measured(), 4).reason


def test_a_rising_failure_rate_shortens_the_interval_and_the_words_have_the_numbers():
    measured = Measured(step=0.5, cost=0.05, failures=0, observed=7200.0, pods=4)
    calm = decide(Auto(), measured, 1)
    assert calm.steps == 512  # 254 s of sqrt(2 * 0.05 s * 7.5 d)
    assert "no failure in 2 h: one in 7.5 d is assumed (one in 30 d for each pod)" in calm.reason
    rough = decide(Auto(), replace(measured, failures=9), calm.steps)
    assert rough.steps == 16
    assert rough.reason == (
        "every 16 steps, 8 s: a snapshot costs training 50 ms, a step takes 500 ms, 9 failures in 2 h; the least time is lost "
        "with one each 8.91 s (Young/Daly)"
    )


def test_the_words_name_the_limit_that_binds():
    measured = Measured(step=0.5, cost=0.05, observed=7200.0, pods=4)
    assert decide(Auto(max_seconds=20.0), measured, 1).reason.endswith(", held down by maxSeconds 20")
    assert decide(Auto(max_steps=3), measured, 1).reason.endswith(", held down by maxSteps 3")
    assert decide(Auto(max_steps=3), measured, 1).steps == 2
    assert decide(Auto(min_steps=5000, max_seconds=1e9), replace(measured, observed=1e5), 1).reason.endswith(
        ", held up by minSteps 5000"
    )
    assert decide(Seconds(0.1), measured, 4).reason.endswith("to have one each 100 ms; a step takes longer than that")


def test_a_young_job_is_not_left_without_snapshots_and_grows_into_the_long_interval_by_few_changes():
    current, seen = 1, []
    for second in range(1, 3600):
        measured = Measured(step=0.02 if current > 2 else 0.024, cost=0.004, observed=float(second))
        decided = decide(Auto(), measured, current)
        assert decided.steps * 0.02 <= second * 0.1 or decided.steps == 1
        if decided.steps != current:
            seen.append(decided)
        current = decided.steps
    assert [d.steps for d in seen] == [4, 16, 64, 256, 1024, 4096, 8192]
    assert [d.reason.endswith("held down by a tenth of the time trained so far") for d in seen] == [True] * 6 + [False]


def test_free_snapshots_are_taken_at_every_step():
    assert decide(Auto(), Measured(step=0.2, cost=0.0, observed=1e5), 1).steps == 1


def test_nothing_measured_yet_leaves_it_as_it_is():
    assert decide(Auto(), Measured(), 0).steps == 1
    assert decide(Auto(min_steps=4), Measured(), 0).steps == 4
    assert decide(Auto(), Measured(step=0.1), 32).steps == 32
    assert decide(Seconds(30), Measured(), 16).steps == 16
    assert decide(Seconds(30), Measured(step=1.0), 16).steps == 16


def test_the_median_step_is_freed_of_the_snapshots_that_are_in_it():
    """One second of training, one of snapshot: whatever interval it is seen under, the same comes out."""
    for current, step in ((1, 2.0), (2, 1.5), (64, 1.0)):
        assert decide(Auto(max_seconds=1e6), Measured(step, 1.0, 1, 86400.0), current).steps == 512


def test_failures_are_counted_since_training_began_and_forgotten_after_a_day():
    failures = (10.0, 150.0, 160.0)
    assert interval.counted(failures, None, 200.0) == (0, 0.0)
    assert interval.counted(failures, 100.0, 200.0) == (2, 100.0)
    assert interval.counted(failures, 100.0, 160.0 + interval.WINDOW) == (1, interval.WINDOW)
    assert interval.remember(failures, 155.0 + interval.WINDOW) == (160.0, 155.0 + interval.WINDOW)
    many: tuple[float, ...] = ()
    for second in range(100):
        many = interval.remember(many, 1000.0 + second)
    assert interval.counted(many, 0.0, 1100.0) == (32, 1100.0 - 1068.0), "the rate counts, not what is still remembered"


@pytest.mark.parametrize(("text", "rule"), [("auto", Auto()), ("8", Steps(8)), ("30s", Seconds(30.0)), ("0.5s", Seconds(0.5))])
def test_what_can_be_typed(text: str, rule: interval.Rule):
    assert interval.parse(text) == rule


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0s", "nans", "infs", "often", "s"])
def test_what_can_not(text: str):
    with pytest.raises(ValueError, match=r".+"):
        interval.parse(text)
