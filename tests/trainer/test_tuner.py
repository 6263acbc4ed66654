"""The choice of how to copy, on made-up machines: the tuner sees only times."""

from __future__ import annotations

import random

import pytest
from holdfast._capture.settings import Settings
from holdfast._capture.tuner import Tuner, Way, ways_for

pytestmark = pytest.mark.torch
SYNC, SYNC2, LAZY = Way(False, 1), Way(False, 2), Way(True, 1)
STATE = 1 << 30


def drive(tuner: Tuner, cost: dict[Way, float], snapshots: int, noise: float = 0.0, step: float = 0.5, seed: int = 1) -> None:
    """Snapshots on a machine where a way makes each step that much longer (seconds)."""
    rng = random.Random(seed)
    for _ in range(snapshots):
        way = tuner.choose(STATE)
        copy = 0.0 if way.lazy else cost[way]
        tuner.measured(step + cost[way] + rng.gauss(0, noise) + (0.2 if rng.random() < 0.05 and noise else 0), copy)


@pytest.mark.parametrize("best", [SYNC, SYNC2, LAZY], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_way_with_the_shortest_step_is_found_in_a_noisy_machine(best, seed):
    cost = {way: 0.03 for way in (SYNC, SYNC2, LAZY)} | {best: 0.01}
    tuner = Tuner([SYNC, SYNC2, LAZY])
    drive(tuner, cost, 100, noise=0.01, seed=seed)
    assert tuner.way == best
    assert "shortest step" in tuner.reason


def test_a_tie_goes_to_the_simplest_way_in_nearly_all_noises():
    chosen = []
    for seed in range(40):
        tuner = Tuner([SYNC, SYNC2, LAZY])
        drive(tuner, dict.fromkeys((SYNC, SYNC2, LAZY), 0.01), 100, noise=0.01, seed=seed)
        chosen.append(tuner.way)
    assert chosen.count(SYNC) >= 36


def test_each_way_is_tried_and_then_one_is_kept():
    tuner = Tuner([SYNC, SYNC2, LAZY])
    tried = set()
    for _ in range(30):
        tried.add(tuner.choose(STATE))
        tuner.measured(0.5, 0.02)
    assert tried == {SYNC, SYNC2, LAZY}
    drive(tuner, dict.fromkeys(tried, 0.02), 70)
    kept = tuner.choose(STATE)
    assert {tuner.choose(STATE) for _ in range(20)} == {kept}


def test_a_copy_that_costs_next_to_nothing_ends_the_search():
    tuner = Tuner([SYNC, SYNC2, LAZY])
    drive(tuner, {SYNC: 0.0005, SYNC2: 0.0005, LAZY: 0.0005}, 40)
    assert not tuner.way.lazy
    assert "% of a step" in tuner.reason


def test_a_small_state_is_copied_at_once_without_trying():
    tuner = Tuner([SYNC, SYNC2, LAZY])
    assert tuner.choose(1 << 20) == SYNC
    assert "small" in tuner.reason


def test_a_state_that_grows_or_steps_that_change_start_the_search_again():
    tuner = Tuner([SYNC, LAZY])
    drive(tuner, {SYNC: 0.03, LAZY: 0.0}, 80)
    assert tuner.way == LAZY
    drive(tuner, {SYNC: 0.03, LAZY: 0.0}, 30)
    drive(tuner, {SYNC: 0.03, LAZY: 0.2}, 100, step=1.0)
    assert tuner.way == SYNC
    tried = set()
    for _ in range(10):
        tried.add(tuner.choose(3 * STATE))
        tuner.measured(1.0, 0.03)
    assert tried == {SYNC, LAZY}


def test_ways_fit_the_cores_of_each_process():
    assert ways_for(1, 0, device=False) == (SYNC, LAZY)
    assert ways_for(2, 0, device=False) == (SYNC, SYNC2, LAZY)
    assert Way(True, 2) in ways_for(64, 0, device=False)
    assert Way(False, 6) in ways_for(8, 6, device=False)  # torch's own threads, all of them
    assert ways_for(64, 32, device=True) == (LAZY,)


@pytest.mark.parametrize(
    ("text", "way"),
    [("auto", None), ("", None), ("sync", SYNC), ("lazy", LAZY), ("SYNC:2", SYNC2), ("lazy:x", None), ("often", None)],
)
def test_the_environment_decides(monkeypatch, text, way, capsys):
    monkeypatch.setenv("HOLDFAST_CAPTURE", text)
    assert Settings.from_environment().way == way
    assert ("HOLDFAST_CAPTURE" in capsys.readouterr().err) == (text in ("lazy:x", "often"))


def test_a_way_that_is_set_is_taken_for_every_size():
    tuner = Tuner([LAZY], "set by HOLDFAST_CAPTURE")
    for size in (10, STATE, 10, 9 * STATE):
        assert tuner.choose(size) == LAZY
        tuner.measured(0.1, 0.0)
    assert tuner.reason == "set by HOLDFAST_CAPTURE"
