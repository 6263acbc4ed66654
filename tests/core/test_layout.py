"""Rules about the repository itself that no linter knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_folder_operator_does_not_shadow_the_standard_library():
    """In a process of its own, started in the root: here `operator` is long imported and nothing would be seen."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import argparse, operator; print(operator.__file__)"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    assert list((ROOT / "operator").glob("*.py")) == []


def test_what_is_injected_needs_no_third_party_package():
    """`holdfast` and `holdfast_core` are imported in users' images, where only torch and the standard library are sure."""
    code = "import sys; sys.path[:0] = ['core', 'trainer']; import holdfast, holdfast.launcher, holdfast_core.planner"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
