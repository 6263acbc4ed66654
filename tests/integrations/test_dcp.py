"""torch.distributed.checkpoint through Holdfast's writer and reader: the same bytes, also with another sharding."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from trainer.conftest import local  # noqa: F401 - a fixture
from trainer.fake_sidecar import python_env
from trainer.test_run import descendants

pytestmark = pytest.mark.torch
EXAMPLE = Path(__file__).parents[2] / "examples/dcp/train.py"

import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from holdfast.integrations import _dcp_slots  # noqa: E402
from holdfast.integrations.dcp import HoldfastReader, HoldfastWriter, last_step  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402


@pytest.fixture
def alone(local: Path) -> Iterator[Path]:  # noqa: F811
    """A process of one rank that has not saved yet."""
    _dcp_slots.memory.cache_clear()
    yield local
    if _dcp_slots.memory.cache_info().currsize:
        _dcp_slots.memory().checkpointer.close()
    _dcp_slots.memory.cache_clear()


def another_process() -> None:
    """The next call is as in a process that was started anew."""
    _dcp_slots.memory().checkpointer.close()
    _dcp_slots.memory.cache_clear()


def state(fill: float) -> dict[str, Any]:
    return {
        "model": {
            "w": torch.full((5, 3), fill),
            "half": torch.full((7,), fill, dtype=torch.bfloat16),
            "empty": torch.zeros(0, 4),
        },
        "nested": [torch.full((), fill), {"n": torch.arange(4) * int(fill)}],
        "epoch": int(fill),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_newest_is_loaded_in_a_new_process_and_an_older_one_by_its_id(alone: Path) -> None:
    assert last_step() == -1
    before = torch.get_rng_state()
    for step in range(3):
        dcp.save(state(step + 1), storage_writer=HoldfastWriter(), checkpoint_id=f"run/step-{step}", no_dist=True)
    another_process()
    assert last_step() == 2
    loaded = state(0)
    dcp.load(loaded, storage_reader=HoldfastReader(), no_dist=True)
    assert same(loaded, state(3))
    dcp.load(loaded, storage_reader=HoldfastReader(), checkpoint_id="run/step-1", no_dist=True)
    assert same(loaded, state(2))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(CheckpointException, match=r"no checkpoint 'run/step-9'.*there is: 'run/step-2', 'run/step-1'"):
        dcp.load(loaded, storage_reader=HoldfastReader(), checkpoint_id="run/step-9", no_dist=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_state_that_changes_after_save_is_not_what_is_loaded(alone: Path) -> None:
    live = state(4)
    dcp.save(live, storage_writer=HoldfastWriter(), no_dist=True)
    live["model"]["w"].zero_()
    loaded = state(0)
    dcp.load(loaded, storage_reader=HoldfastReader(), no_dist=True)
    assert same(loaded, state(4))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_flipped_bit_is_found_and_the_older_checkpoint_taken(alone: Path) -> None:
    for step in range(2):
        dcp.save({"w": torch.full((1000,), step + 1.0)}, storage_writer=HoldfastWriter(), checkpoint_id=str(step), no_dist=True)
    another_process()
    (file,) = alone.glob("rank-*.arena")
    raw = bytearray(file.read_bytes())
    raw[raw.index(torch.full((1000,), 2.0).numpy().tobytes()) + 13] ^= 4
    file.write_bytes(raw)
    loaded = {"w": torch.zeros(1000)}
    dcp.load(loaded, storage_reader=HoldfastReader(), no_dist=True)
    assert torch.equal(loaded["w"], torch.ones(1000))


def test_metadata_is_json_and_survives_the_round_trip() -> None:
    items = (
        _dcp_slots.Item("a", (2, 0), (3, 4), (5, 4), "bfloat16"),
        _dcp_slots.Item("b"),
        _dcp_slots.Item("c", (), (), (), "int8"),
    )
    meta = _dcp_slots.Meta("x/7", items, (("a", ("model", 0, "a")),))
    assert _dcp_slots.Meta.from_json(meta.to_json()) == meta
    with pytest.raises(_dcp_slots.CorruptShard):
        _dcp_slots.Meta.from_json('{"id": "x", "items": [[1]]}')


RANKS = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from holdfast.integrations.dcp import HoldfastReader, HoldfastWriter
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).view(7, 5)
def state(value, dim): return {"w": distribute_tensor(value.clone(), mesh, [Shard(dim)]), "same": value[0].clone(), "n": 3}
dcp.save(state(whole, 0), storage_writer=HoldfastWriter(), checkpoint_id="step-5")
future = dcp.async_save(state(whole + 1, 0), storage_writer=HoldfastWriter(), checkpoint_id="step-6")
future.result()
for dim in (0, 1):
    loaded = state(torch.zeros(7, 5), dim)
    dcp.load(loaded, storage_reader=HoldfastReader())
    assert torch.equal(loaded["w"].full_tensor(), whole + 1) and torch.equal(loaded["same"], whole[0] + 1), loaded
print("loaded", flush=True)
dist.barrier()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_save_shards_that_other_shardings_and_one_process_load(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    folder = tmp_path / "d"
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "ranks.py"]
    ranks = [
        subprocess.Popen(
            command, cwd=tmp_path, env=python_env(HOLDFAST_DIR=str(folder), RANK=str(rank), **env),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    assert all("loaded" in text for text in outputs), "\n".join(outputs)
    loaded = {"w": torch.zeros(7, 5), "same": torch.zeros(5), "n": 0}
    dcp.load(loaded, storage_reader=HoldfastReader(folder), no_dist=True)
    whole = torch.arange(35.0).view(7, 5) + 1
    assert torch.equal(loaded["w"], whole)
    assert torch.equal(loaded["same"], whole[0])
    assert loaded["n"] == 3


@pytest.mark.slow
def test_under_a_sidecar_a_killed_rank_resumes_from_memory(tmp_path: Path) -> None:
    """`holdfast run` with two ranks: the same hash as a run without a fault."""
    hashes = []
    for victim in (None, 1):
        (tmp_path / str(victim)).mkdir()
        log = tmp_path / str(victim) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", "run", "-n", "2", str(EXAMPLE), "--steps", "150"],
                cwd=log.parent, env=python_env(OMP_NUM_THREADS="1"), stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            if victim is not None:
                wait_until(lambda: "step 30 " in log.read_text())  # noqa: B023 - called at once
                os.kill(pid_of_rank(process.pid, victim), 9)
            assert process.wait(100) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
        hashes.append([line for line in log.read_text().splitlines() if "final-weights" in line])
    assert "resumed from memory at step" in log.read_text()
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 1


def wait_until(condition: Any, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def pid_of_rank(pid: int, rank: int) -> int:
    """Who has the rank's arena mapped and is not the sidecar. The standby has the command line of a rank, but no arena."""
    found = []
    for process in descendants(pid):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            folder = Path(f"/proc/{process}")
            mapped = f"/rank-{rank:05d}." in (folder / "maps").read_text()
            if mapped and "holdfast_sidecar" not in (folder / "cmdline").read_text():
                found.append(process)
    assert len(found) == 1, found
    return found[0]


def test_the_step_is_the_last_number_of_the_id() -> None:
    from holdfast.integrations.dcp import _step_of

    assert [_step_of(i) for i in ("", "x", "step-12", "a/7/last", "9")] == [-1, -1, 12, 7, 9]
