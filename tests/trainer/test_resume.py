"""Killed at random moments, also in the middle of a copy, and resumed: every kind of state ends as if nothing had happened.

One seed is one run of one kind in one mode of capture, killed three times. `pytest -k seed017` runs one again;
`HOLDFAST_SEEDS=300-499` adds others. What a kill leaves to chance is its moment: a seed repeats where it aims.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from trainer.fake_sidecar import python_env
from trainer.resume_harness import KINDS, MAY_DROP, Case, Verdict

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
NAMES = sorted(KINDS)
MODES = ("lazy", "sync", "lazy:2", "auto", "sync:2", "lazy")
WIDTHS = (24, 512)  # a few kilobytes, and some megabytes, whose copy takes as long as a step
SEEDS = 200
FAST = {NAMES.index(name) for name in ("adamw-fused", "batchnorm", "gan", "values")}
SERVERS = 2


def case_of(seed: int) -> Case:
    """Every kind in turn, each time in the next mode and the other width."""
    turn = seed // len(NAMES)
    return Case(seed, NAMES[seed % len(NAMES)], MODES[turn % len(MODES)], WIDTHS[(seed + turn) % 2], kills=3)


def seeds() -> list[int]:
    """All of them, and those that the environment adds: numbers and ranges, separated by commas."""
    wanted = list(range(SEEDS))
    for part in filter(None, os.environ.get("HOLDFAST_SEEDS", "").split(",")):
        first, _, last = part.partition("-")
        wanted += [s for s in range(int(first), int(last or first) + 1) if s >= SEEDS]
    return wanted


class Servers:
    """Harnesses that stay up, so that torch is imported once for many seeds; each thread of the pool has its own."""

    def __init__(self, folder: Path) -> None:
        self._own, self._all, self._folder = threading.local(), list[subprocess.Popen[str]](), folder
        self._pool = ThreadPoolExecutor(SERVERS)

    def submit(self, case: Case) -> Future[Verdict]:
        return self._pool.submit(self._judge, case)

    def _judge(self, case: Case) -> Verdict:
        server: subprocess.Popen[str] | None = getattr(self._own, "server", None)
        if server is None or server.poll() is not None:
            server = self._own.server = self._start()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(asdict(case)), file=server.stdin, flush=True)
        line = server.stdout.readline()
        return Verdict(**json.loads(line)) if line else Verdict(problem=f"the harness died:\n{self._said()[-2000:]}")

    def _start(self) -> subprocess.Popen[str]:
        harness = Path(__file__).with_name("resume_harness.py")
        path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        env = python_env(PYTHONPATH=path, OPENBLAS_NUM_THREADS="1")
        with (self._folder / "stderr").open("a") as log:
            server = subprocess.Popen(
                [sys.executable, str(harness)], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._all.append(server)
        return server

    def _said(self) -> str:
        return (self._folder / "stderr").read_text()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for server in self._all:
            server.communicate(timeout=30)


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, Future[Verdict]]]:
    """All that is selected is started at once, and awaited test by test."""
    folder, servers = tmp_path_factory.mktemp("harness"), None
    wanted = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    cases = {p["seed"]: case_of(p["seed"]) for p in wanted if "seed" in p}
    cases |= {p["verified"]: Case(0, p["verified"], "lazy", WIDTHS[1], kills=0, verify=True) for p in wanted if "verified" in p}
    servers = Servers(folder)
    yield {key: servers.submit(case) for key, case in cases.items()}
    servers.close()


def _seed(seed: int) -> Any:
    case = case_of(seed)
    marks = () if seed in FAST else (pytest.mark.slow,)
    return pytest.param(seed, id=f"seed{seed:03d}-{case.kind}-{case.mode}", marks=marks)


@pytest.mark.parametrize("seed", [_seed(seed) for seed in seeds()])
def test_killed_and_resumed(verdicts: dict[Any, Future[Verdict]], seed: int) -> None:
    verdict = verdicts[seed].result(timeout=110)
    assert not verdict.problem, f"{case_of(seed)}: {verdict}"


@pytest.mark.slow
def test_the_kills_hit_what_they_aim_at(verdicts: dict[Any, Future[Verdict]]) -> None:
    """Without this the seeds could all be killed in harmless moments, and show nothing."""
    done = [v.result(timeout=110) for key, v in verdicts.items() if isinstance(key, int)]
    if len(done) < SEEDS:
        pytest.skip("only meaningful over all seeds")
    kills, hits = sum(v.kills for v in done), sum(v.hits for v in done)
    again = sum(any(0 < step < 13 for step in v.resumed) for v in done)
    print(f"{kills} kills, {hits} of them in the middle of a copy; {again} of {len(done)} runs resumed half way")
    assert kills >= 2 * len(done)
    assert hits >= kills // 20
    assert again >= len(done) * 3 // 4


@pytest.mark.slow
@pytest.mark.parametrize("verified", NAMES)
def test_nothing_changes_under_a_copy(verdicts: dict[Any, Future[Verdict]], verified: str) -> None:
    """The verify mode reads everything again after each capture; an undisturbed run must not lose a snapshot to it."""
    verdict = verdicts[verified].result(timeout=110)
    assert not verdict.problem, f"{verified}: {verdict}"
    assert verified in MAY_DROP or verdict.skipped == 0, verdict
