"""Arenas that are mapped before the script asks for them: the same bytes, nothing kept alive, and a hint that may be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast._launcher.contract import environment
from holdfast._state import ahead
from holdfast._state.mapping import create_arena
from holdfast_core.arena import ArenaHeader
from holdfast_core.local import Launch

from trainer.fake_sidecar import python_env

pytestmark = pytest.mark.torch

SAVE = """
import holdfast, torch
torch.manual_seed(1)
ckpt = holdfast.Checkpointer(model=torch.nn.Linear(512, 1024))
for step in ckpt.steps(2):
    ckpt.snapshot(step)
"""
LOAD = """
import holdfast, threading, torch
from holdfast._state import ahead, mapping
for thread in threading.enumerate():
    if thread.name == "holdfast-ahead":
        thread.join(30)
print("ahead", len(ahead._mapped))
before = set(ahead._mapped.values())
module = torch.nn.Linear(512, 1024)
ckpt = holdfast.Checkpointer(model=module)
print("step", ckpt.restore())
torch.manual_seed(1)
print("same", torch.equal(module.weight, torch.nn.Linear(512, 1024).weight))
print("taken", any(m.buf.obj is b for m in ckpt._home._arenas for b in before), "left", len(ahead._mapped))
"""


def run(code: str, folder: Path, **env: str) -> str:
    """Run as a script of its own; returns its output. Warnings of ours and failures are in it too."""
    script = folder / "train.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=python_env(**env), timeout=120, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_the_mapping_that_was_made_ahead_is_the_one_that_is_restored_from(tmp_path: Path, where: str) -> None:
    env = {"HOLDFAST_DIR": str(tmp_path / where)} if where else {}
    run(SAVE, tmp_path, **env)
    output = run(LOAD, tmp_path, **env)
    assert output.startswith("ahead 1\n"), output
    assert output.endswith("step 1\nsame True\ntaken True left 0\n"), output


@pytest.mark.parametrize("hint", ["off", "/nowhere/rank-00000.g0.arena", "train.py"])
def test_a_hint_that_is_wrong_or_off_costs_nothing(tmp_path: Path, hint: str) -> None:
    run(SAVE, tmp_path)
    output = run(LOAD, tmp_path, HOLDFAST_AHEAD=hint)
    assert "ahead 0" in output
    assert "same True\ntaken False left 0" in output, output


@pytest.fixture
def arena_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rank-00000.g0.arena"
    create_arena(path, ArenaHeader("uid", 0, 1, 3, 1 << 16), 1)
    ahead._mapped.clear()
    ahead._over.clear()  # a Checkpointer of another test, in this process, has restored
    yield path
    ahead._mapped.clear()
    ahead._over.clear()


def test_another_file_under_the_same_name_is_not_taken_for_it(arena_file: Path) -> None:
    ahead._map(arena_file)
    assert len(ahead._mapped) == 1
    create_arena(arena_file, ArenaHeader("uid", 0, 1, 3, 1 << 16), 1)
    with arena_file.open("rb") as file:
        assert ahead.take(file.fileno()) is None


def test_a_file_that_was_cut_short_ends_no_process_and_is_not_taken(arena_file: Path) -> None:
    ahead._map(arena_file)
    os.truncate(arena_file, 4096)
    (mapping,) = ahead._mapped.values()
    ahead._fault_in(mapping, [(0, len(mapping))])  # SIGBUS would end us here
    with arena_file.open("rb") as file:
        assert ahead.take(file.fileno()) is None


def test_what_comes_too_late_is_let_go(arena_file: Path) -> None:
    ahead.drop()
    ahead._map(arena_file)
    assert not ahead._mapped


def test_a_garbage_file_is_left_to_whoever_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.g0.arena"
    path.write_bytes(bytes(1 << 16))
    ahead._work({"HOLDFAST_DIR": str(tmp_path)}, ["train.py"])
    assert not ahead._mapped


def test_the_launcher_hands_on_what_the_sidecar_says() -> None:
    launch = Launch(2, 3, 1, 2, "localhost", 1, 0, 2, arenas=("/shared/one", ""))
    assert environment({}, launch, 0)["HOLDFAST_AHEAD"] == "/shared/one"
    assert "HOLDFAST_AHEAD" not in environment({}, launch, 1)
    assert environment({"HOLDFAST_AHEAD": "off"}, launch, 0)["HOLDFAST_AHEAD"] == "off"
