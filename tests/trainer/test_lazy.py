"""Lazy capture: what is sealed is the state at the call of snapshot(), whatever happens before the copy gets its turn.

The copy threads are held at the door (`held`), so that nothing here depends on who is faster: without its fence, each of these
snapshots would be torn every time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast
import pytest
import torch
from holdfast._state.mapping import open_arena
from holdfast_core import arena
from holdfast_core import local as local_messages
from holdfast_core.arena import SlotState
from torch import nn

from trainer.fake_sidecar import python_env
from trainer.held import Background, background
from trainer.kinds import MAY_DROP, Job
from trainer.leaves import leaves
from trainer.resume_harness import KINDS, seed_everything
from trainer.same import bits, same
from trainer.sealed import MEGABYTE, add_one, checkpointer, constant, sealed, value_of
from trainer.test_with_agent import Agent, agent

pytestmark = pytest.mark.torch
__all__ = ["agent", "background"]  # fixtures


@pytest.fixture(autouse=True)
def lazy(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CAPTURE", "lazy")
    monkeypatch.delenv("HOLDFAST_VERIFY", raising=False)


@contextmanager
def copy_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checkpointers made in here find a copy of the snapshots, as if another process started from them."""
    other = folder.with_name("copy")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(folder, other)
    with monkeypatch.context() as patch:
        patch.setenv("HOLDFAST_DIR", str(other))
        yield


FAST = {"adamw-fused", "batchnorm", "ema-by-hand", "gan", "own-optimizer-unfenced", "strided", "swapped-data", "values"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in sorted(KINDS)])
def test_the_next_step_does_not_tear_a_snapshot(
    local: Path, background: Background, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither its forward, nor its optimizers, nor what it does by hand, for each kind of state."""
    seed_everything(0)
    job = KINDS[name](24)
    with checkpointer(**job.given) as ckpt:
        for step in range(3):
            job.train(step, ckpt)
            ckpt.snapshot(step)
            ckpt.wait()
        for step in range(3, 6):
            job.train(step, ckpt)
            background.hold()
            taken = ckpt.snapshot(step)
            expected = leaves(job, ckpt)
            job.train(step + 1, ckpt)
            background.release()
            if not (taken and ckpt.wait()):
                assert name in MAY_DROP, f"the snapshot of step {step} was not sealed: {ckpt.report()}"
                continue
            with copy_of(local, monkeypatch):
                found, at = resumed(name)
            assert at == step
            wrong = [path for path in {**expected, **found} if expected.get(path) != found.get(path)]
            assert not wrong, f"step {step} holds other values: {wrong}"


def resumed(name: str) -> tuple[dict[str, str], int]:
    """The state that another process would have, and its step."""
    seed = torch.get_rng_state()
    seed_everything(99)
    other: Job = KINDS[name](24)
    ckpt = holdfast.Checkpointer(**other.given)
    try:
        at = ckpt.restore()
        return leaves(other, ckpt), at
    finally:
        ckpt.close()
        torch.set_rng_state(seed)


def test_consecutive_generations_differ(local: Path) -> None:
    """Neither cached handles nor reused buffers: each slot holds the values of its own step."""
    module, optimizer = constant(0.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        for step in range(8):
            add_one(module, optimizer)
            assert ckpt.snapshot(step)
    assert {step: value_of(held["model.weight"]) for step, held in sealed(local).items()} == {7: [8.0], 6: [7.0], 5: [6.0]}


def test_a_step_waits_for_its_own_tensors_only(local: Path, background: Background) -> None:
    """The other optimizer's were not copied yet when the first one had stepped: a change by hand gets into the snapshot."""
    (one, first), (two, second) = constant(1.0), constant(1.0)
    with checkpointer(one=one, first=first, two=two, second=second) as ckpt:
        background.hold()
        assert ckpt.snapshot(0)
        first.zero_grad()
        second.zero_grad()
        add_one(one, first)
        two.weight.data.fill_(7)  # behind the back of all fences
        background.release()
        assert ckpt.wait()
        assert ckpt.report().fence_waits <= 1
    held = sealed(local)[0]
    assert value_of(held["one.weight"]) == [1.0]
    assert value_of(held["two.weight"]) == [7.0]


def test_steps_that_had_to_wait_are_counted(local: Path, background: Background) -> None:
    module, optimizer = constant(0.0, 16 * MEGABYTE)  # 64 MiB: milliseconds
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        for step in range(3):
            background.hold()
            assert ckpt.snapshot(step)
            add_one(module, optimizer)
            background.release()
            assert ckpt.wait()
        report = ckpt.report()
        assert (report.mode, report.snapshots, report.skipped) == ("lazy", 3, 0)
        assert report.fence_waits == 3
        assert report.fence_seconds > 0
        optimizer.step()
        assert ckpt.report().fence_waits == 3, "nothing was left to copy"


def test_fence_lets_anything_change(local: Path, background: Background) -> None:
    module, optimizer = constant(1.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        background.hold()
        assert ckpt.snapshot(0)
        ckpt.fence()
        module.weight.data.fill_(2)
        background.release()
        assert ckpt.wait()
    assert value_of(sealed(local)[0]["model.weight"]) == [1.0]


def test_a_change_by_hand_drops_the_snapshot_and_names_the_tensor(
    local: Path, background: Background, capsys: pytest.CaptureFixture[str]
) -> None:
    module, optimizer = constant(1.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        background.hold()
        assert ckpt.snapshot(0)
        with torch.no_grad():
            module.weight.add_(1)
        background.release()
        assert not ckpt.wait()
        assert ckpt.report().skipped == 1
        said = capsys.readouterr().err
        assert "model.weight" in said
        assert "fence()" in said
        assert sealed(local) == {}
        background.hold()
        assert ckpt.snapshot(1)
        with torch.no_grad():
            module.weight.add_(1)  # again: by now it is known, and was copied at once
        background.release()
        assert ckpt.wait()
    assert value_of(sealed(local)[1]["model.weight"]) == [2.0]


@pytest.mark.parametrize("verify", [False, True])
def test_a_change_through_data_is_seen_by_the_debug_mode_alone(
    local: Path, background: Background, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verify: bool
) -> None:
    monkeypatch.setenv("HOLDFAST_VERIFY", str(int(verify)))
    module, optimizer = constant(1.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        background.hold()
        assert ckpt.snapshot(0)
        module.weight.data.add_(1)
        background.release()
        assert ckpt.wait() is not verify
    assert ("model.weight" in capsys.readouterr().err) is verify
    assert (0 in sealed(local)) is not verify


def test_parameters_added_on_the_way_get_larger_slots(local: Path) -> None:
    model = nn.ModuleList([nn.Linear(64, 64)])
    optimizer = torch.optim.Adam(model.parameters())
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        for step in range(6):
            add_one(model, optimizer)
            assert ckpt.snapshot(step)
            if step % 2:
                model.append(nn.Linear(256, 256))
                optimizer.add_param_group({"params": list(model[-1].parameters())})
        assert ckpt.wait()
    held = sealed(local)[5]
    assert same(torch.frombuffer(bytearray(held["model.2.weight"]), dtype=torch.float32), model[2].weight.detach().reshape(-1))
    assert len([key for key in held if key.endswith("exp_avg_sq")]) == 6


def test_the_same_memory_read_in_another_way(local: Path) -> None:
    """Address and size of the parameter stay, its values do not."""
    module = nn.Linear(3, 3, bias=False)
    with checkpointer(model=module) as ckpt:
        for step in range(3):
            assert ckpt.snapshot(step)
            module.weight.data = module.weight.data.t()
        assert ckpt.wait()
        expected = [bits(w) for w in (module.weight.t(), module.weight, module.weight.t())]
    assert [sealed(local)[step]["model.weight"] for step in range(3)] == expected


def test_a_copy_that_fails_costs_a_snapshot_not_the_training(
    local: Path, background: Background, capsys: pytest.CaptureFixture[str]
) -> None:
    module, optimizer = constant(0.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        background.error = OSError("bad page")
        assert ckpt.snapshot(0)
        assert not ckpt.wait()
        background.error = None
        assert "bad page" in capsys.readouterr().err
        add_one(module, optimizer)
        assert ckpt.snapshot(1)
        assert ckpt.wait()
        assert (ckpt.report().snapshots, ckpt.report().skipped) == (1, 1)
    assert {step: value_of(held["model.weight"]) for step, held in sealed(local).items()} == {1: [1.0]}


def test_a_copy_that_fails_in_a_fence_does_not_stop_the_step(
    local: Path, background: Background, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, optimizer = constant(0.0)

    def fail() -> None:
        raise OSError("bad page")

    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        background.hold()
        assert ckpt.snapshot(0)
        assert background.arrived.wait(30)
        with monkeypatch.context() as patch:
            patch.setattr(background, "enter", fail)
            add_one(module, optimizer)
            ckpt.fence()
        assert module.weight.unique().tolist() == [1.0]
        background.release()
        assert not ckpt.wait()
        assert "bad page" in capsys.readouterr().err
        assert ckpt.snapshot(1)
        assert ckpt.wait()
    assert {step: value_of(held["model.weight"]) for step, held in sealed(local).items()} == {1: [1.0]}


def test_a_newer_attempt_fences_a_copy_under_way(local: Path, background: Background) -> None:
    module, optimizer = constant(0.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        assert ckpt.snapshot(0)
        assert ckpt.wait()
        background.hold()
        assert ckpt.snapshot(1)
        (path,) = local.glob("*.arena")
        mapped = open_arena(path)
        arena.set_fence(mapped.buf, arena.fence(mapped.buf) + 1)
        add_one(module, optimizer)
        background.release()
        assert not ckpt.wait()
        assert not ckpt.snapshot(2)
    assert list(sealed(local)) == [0]


def test_waiting_is_bounded(local: Path, background: Background) -> None:
    module, optimizer = constant(0.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        assert not ckpt.wait(), "nothing was taken"
        background.hold()
        assert ckpt.snapshot(0)
        assert not ckpt.wait(0.01)
        background.release()
        assert ckpt.wait()


def test_closing_seals_the_last_snapshot(local: Path) -> None:
    module, optimizer = constant(3.0)
    with checkpointer(model=module, optimizer=optimizer) as ckpt:
        assert ckpt.snapshot(0)
    assert value_of(sealed(local)[0]["model.weight"]) == [3.0]
    assert bits(module.weight) == sealed(local)[0]["model.weight"]


def test_a_state_that_may_not_grow_is_said_and_training_goes_on(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sidecar has no room for larger slots: earlier steps stay, and nothing is written outside of the arena."""
    monkeypatch.setenv("HOLDFAST_CAPTURE", "lazy")
    module, optimizer = constant(0.0)
    state: dict[str, Any] = {}
    ckpt = holdfast.Checkpointer(model=module, optimizer=optimizer, state=state)
    ckpt.restore()
    assert ckpt.snapshot(0)
    add_one(module, optimizer)
    assert ckpt.wait()
    agent.refusal = "the arena needs 99 MiB: checkpoint.memory.size must grow"
    state["more"] = torch.zeros(MEGABYTE)
    assert not ckpt.snapshot(1)
    add_one(module, optimizer)
    assert "memory.size must grow" in capsys.readouterr().err
    (skipped,) = agent.heard(local_messages.Skipped)
    assert "memory.size must grow" in skipped.reason  # type: ignore[union-attr]
    assert [s.step for s in agent.arena().slots() if s.state is SlotState.SEALED] == [0]
    agent.refusal = ""
    monkeypatch.setattr(ckpt._home, "_next_reserve", 0.0)  # it asks again after ten seconds
    assert ckpt.snapshot(2)
    assert ckpt.wait()
    ckpt.close()
    assert [s.step for s in agent.arena().slots() if s.state is SlotState.SEALED] == [2]


ENDING = """
import atexit, sys, threading, time
import holdfast, torch
def left():
    return [t.name for t in threading.enumerate() if t.name.startswith("holdfast-")]
atexit.register(lambda: print("left:", left()))  # runs last
from holdfast_core.fastcopy import Batch

real = Batch.run
def slow(self, *given):  # the copy of the last snapshot has not begun when the script ends
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.3)
    return real(self, *given)
Batch.run = slow

module = torch.nn.Linear(1000, 10)
optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
ckpt = holdfast.Checkpointer(model=module, optimizer=optimizer)
first = ckpt.restore() + 1
print(first)
for step in range(first, first + 3):
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    ckpt.snapshot(step)
if "close" in sys.argv:
    ckpt.close()
    assert not left(), left()
if "forget" in sys.argv:
    del ckpt  # as at the end of a function: nobody can end its threads any more
if "raise" in sys.argv:
    raise RuntimeError("the user's own")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("end", 0), ("close", 0), ("forget", 0), ("raise", 1)])
def test_the_last_snapshot_of_a_script_is_not_lost(local: Path, how: str, code: int) -> None:
    """With close() and without, in a function that returns, and with an error of the user's: what was taken is sealed before
    the process ends, and no thread of ours outlives the script."""
    for first in (0, 3):
        env = python_env(HOLDFAST_DIR=str(local), HOLDFAST_CAPTURE="lazy")
        done = subprocess.run(
            [sys.executable, "-c", ENDING, how], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        assert done.stdout == f"{first}\nleft: []\n", done.stderr
    assert max(sealed(local)) == 5


def test_a_forked_process_has_no_snapshots_of_its_own(local: Path) -> None:
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with checkpointer(model=model, optimizer=optimizer) as ckpt:
        ckpt.restore()
        assert ckpt.snapshot(0)
        assert ckpt.wait()
        pid = os.fork()
        if pid == 0:
            os._exit(10 * ckpt.snapshot(1) + ckpt.wait())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child was refused, and did not hang"
        assert ckpt.snapshot(2)
        assert ckpt.wait()
