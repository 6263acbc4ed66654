"""Each library, the real one: killed at random moments and resumed, a job ends with the weights of a run without a fault."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from trainer.fake_sidecar import python_env

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(300)]
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
JOBS = HERE / "jobs"
LIGHTNING = str(JOBS / "lightning_with_everything.py")

# library: modules to import once, and its cases: name -> (ranks, steps, command)
CASES: dict[str, tuple[list[str], dict[str, tuple[int, int, list[str]]]]] = {
    "transformers": (
        ["transformers.trainer", "torchdata.stateful_dataloader"],
        {
            "everything": (1, 48, [str(JOBS / "trainer_with_everything.py"), "12"]),
            "example, 2 ranks": (2, 40, [str(EXAMPLES / "transformers/train.py"), "--steps", "40", "--characters", "20000"]),
        },
    ),
    "accelerate": (
        ["accelerate", "torchdata.stateful_dataloader"],
        {
            "example": (1, 126, [str(EXAMPLES / "accelerate/train.py"), "--epochs", "3"]),
            "stateful": (1, 126, [str(EXAMPLES / "accelerate/train.py"), "--epochs", "3", "--stateful"]),
            "example, 2 ranks": (2, 84, [str(EXAMPLES / "accelerate/train.py"), "--epochs", "4"]),
            "stateful, 2 ranks": (2, 84, [str(EXAMPLES / "accelerate/train.py"), "--epochs", "4", "--stateful"]),
        },
    ),
    "lightning": (
        ["lightning.pytorch", "torchdata.stateful_dataloader", "s3fs"],  # lightning looks for s3fs late
        {
            "plain loader": (1, 60, [LIGHTNING, "plain", "15"]),
            "two loaders": (1, 60, [LIGHTNING, "two", "15"]),
            "stateful loader": (1, 60, [LIGHTNING, "stateful", "15"]),
            "loader without a length": (1, 60, [LIGHTNING, "iterable", "15"]),
            "two optimizers by hand": (1, 110, [LIGHTNING, "manual", "5"]),
            "example, 2 ranks": (2, 63, [str(EXAMPLES / "lightning/train.py"), "--epochs", "3"]),
        },
    ),
    "dcp": (
        [],
        {
            "example": (1, 60, [str(EXAMPLES / "dcp/train.py"), "--steps", "60"]),
            "example, 2 ranks": (2, 60, [str(EXAMPLES / "dcp/train.py"), "--steps", "60"]),
        },
    ),
}
_results: dict[str, dict[str, Any]] = {}


def results(library: str, folder: Path) -> dict[str, Any]:
    """Of all cases of a library: they run in one process, so that it is imported once."""
    if library not in _results:
        modules, cases = CASES[library]
        seed = random.randrange(10**6)
        draw = random.Random(seed)
        requests = []
        for number, (ranks, steps, command) in enumerate(cases.values()):
            kills = sorted(draw.sample(range(steps // 2), 2))  # early: a script that ends before it is killed proves nothing
            (folder / str(number)).mkdir(parents=True)
            case = {"folder": str(folder / str(number)), "world": ranks, "kills": kills, "command": command}
            requests.append({**case, "ports": [free_port() for _ in range(4)]})  # the reference, two that are killed, the last
        (folder / "cases.json").write_text(json.dumps({"modules": modules, "seed": seed, "cases": requests}))
        done = subprocess.run(
            [sys.executable, str(HERE / "lives.py"), str(folder / "cases.json")],
            env=python_env(), capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        _results[library] = {name: {**line, "seed": seed} for name, line in zip(cases, lines, strict=True)}
    return _results[library]


def ends(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("final-weights", "counted", "history"))]


@pytest.mark.parametrize(("library", "case"), [(library, case) for library, (_, cases) in CASES.items() for case in cases])
def test_killed_and_resumed_it_ends_the_same(tmp_path_factory: pytest.TempPathFactory, library: str, case: str) -> None:
    result = results(library, tmp_path_factory.mktemp(library))[case]
    assert "error" not in result, f"seed {result['seed']}: {result['error']}"
    assert len(result["killed"]) == 2
    assert ends(result["reference"]), result["reference"]
    assert ends(result["faults"]) == ends(result["reference"]), f"seed {result['seed']}, killed at {result['killed']}"
    assert "resuming after step" in result["faults"]
