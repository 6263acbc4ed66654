"""SIGKILL at random moments of a capture: a step that all ranks had sealed is never lost, and all resume from the same one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.fake_sidecar import python_env

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize(("world", "rounds"), [(1, 25), (3, 12)])
def test_kills_at_random_moments(tmp_path: Path, world: int, rounds: int) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    harness = Path(__file__).with_name("crash_harness.py")
    command = [sys.executable, str(harness), str(tmp_path / "d"), str(seed), str(rounds), str(world)]
    done = subprocess.run(
        command, env=python_env(OPENBLAS_NUM_THREADS="1"), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == rounds
    for number, result in enumerate(results):
        assert all(result["killed"]), f"seed {seed}, round {number}: a rank ended by itself\n{done.stderr}"
        assert len(set(result["restored"])) == 1, f"seed {seed}, round {number}: {result}"
        if result["before"]:
            common = set.intersection(*map(set, result["before"]))
            assert result["restored"][0] == max(common, default=-1), f"seed {seed}, round {number}: {result}"
    assert results[-1]["restored"][0] > rounds // 4, "the rounds made no progress: nothing was tested"
