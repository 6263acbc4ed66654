"""The Checkpointer beside a sidecar: what it says, what it does when the sidecar refuses, is slow, dies, or lies."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import holdfast
import pytest
import torch
from holdfast._state.mapping import Mapped, create_arena, open_arena
from holdfast_core import arena, local
from holdfast_core.arena import ArenaHeader, SlotState

from trainer.fake_sidecar import FakeSidecar, wait_until

pytestmark = pytest.mark.torch
ATTEMPT = 3


class Agent:
    """A sidecar that owns one arena, and answers as the test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slots = 3
        self.attached = local.Attached()
        self.refusal = ""
        self.generation = 0
        self.fake = FakeSidecar(folder / "agent.sock", self.answer)

    def answer(self, message: local.Message) -> local.Message | None:
        if isinstance(message, local.Attach):
            return self.attached
        if isinstance(message, local.Reserve):
            return local.Error(self.refusal) if self.refusal else self.reserve(message.slot_bytes)
        return None

    def reserve(self, slot_bytes: int) -> local.Reserved:
        path = self.folder / arena.file_name(1, self.generation)
        if not path.exists() or open_arena(path).header.slot_bytes < slot_bytes:
            self.generation += path.exists()
            path = self.folder / arena.file_name(1, self.generation)
            create_arena(path, ArenaHeader("uid", 1, 2, self.slots, slot_bytes, self.generation), ATTEMPT)
        return local.Reserved(str(path))

    def arena(self) -> Mapped:
        return open_arena(self.folder / arena.file_name(1, self.generation))

    def commit(self, step: int) -> None:
        arena.set_committed(self.arena().buf, step)

    def heard(self, kind: type, count: int = 1) -> list[local.Message]:
        self.fake.wait(lambda: len(self.fake.of(kind)) >= count)
        return self.fake.of(kind)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "HOLDFAST_ATTEMPT": str(ATTEMPT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOLDFAST_SOCKET", str(tmp_path / "agent.sock"))
    monkeypatch.setenv("HOLDFAST_CAPTURE", "sync")  # what is said is looked at right after each snapshot()
    it = Agent(tmp_path)
    yield it
    it.fake.close()


def test_the_conversation_of_a_good_run(agent: Agent) -> None:
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    for step in ckpt.steps(4):
        assert ckpt.snapshot(step, loss=step / 2)
        agent.commit(step)
    path = str(agent.arena().path)
    agent.heard(local.Progress, 4)
    assert agent.fake.of(local.Attach) == [local.Attach(1, ATTEMPT)]
    (restored,) = agent.fake.of(local.Restored)
    assert (restored.step, restored.attempt) == (-1, ATTEMPT)  # type: ignore[union-attr]
    assert agent.fake.of(local.Progress) == [local.Progress(1, ATTEMPT, s, s / 2) for s in range(4)]
    sealed = agent.fake.of(local.Sealed)
    assert [(m.step, m.path, m.rank) for m in sealed] == [(s, path, 1) for s in range(4)]  # type: ignore[union-attr]
    assert all(m.stall_seconds > 0 and m.nbytes > 40 for m in sealed)  # type: ignore[union-attr]


def test_a_loop_of_the_users_own_reports_progress_too(agent: Agent) -> None:
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    ckpt.restore()
    ckpt.snapshot(0, loss=torch.tensor(float("nan"), requires_grad=True))
    ckpt.snapshot(1, loss="no number")
    ckpt.close()
    assert agent.heard(local.Progress, 2) == [local.Progress(1, ATTEMPT, 0), local.Progress(1, ATTEMPT, 1)]


def test_it_restores_what_the_sidecar_points_at(agent: Agent) -> None:
    x = torch.arange(10)
    ckpt = holdfast.Checkpointer(x=x)
    ckpt.restore()
    for step in range(2):
        x += 100
        assert ckpt.snapshot(step)
    ckpt.close()
    slot = next(s for s in agent.arena().slots() if s.step == 0 and s.state is SlotState.SEALED)
    agent.attached = local.Attached(str(agent.arena().path), slot.index, 0)
    x.zero_()
    again = holdfast.Checkpointer(x=x)
    assert list(again.steps(1)) == []
    assert x.tolist() == list(range(100, 110))
    assert agent.heard(local.Restored, 2)[-1].step == 0  # type: ignore[union-attr]


def test_a_step_that_others_may_need_is_never_overwritten(agent: Agent) -> None:
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    ckpt.restore()
    assert [ckpt.snapshot(s) for s in range(5)] == [True, True, True, False, False]
    assert [m.step for m in agent.heard(local.Skipped, 2)] == [3, 4]  # type: ignore[union-attr]
    agent.commit(1)
    assert ckpt.snapshot(5)
    assert {s.step for s in agent.arena().slots()} == {5, 1, 2}
    arena.set_lease(
        agent.arena().buf, next(s.index for s in agent.arena().slots() if s.step == 1), time.monotonic_ns() + 10**12
    )
    agent.commit(5)
    assert ckpt.snapshot(6)
    assert {s.step for s in agent.arena().slots()} == {5, 1, 6}, "a leased slot is being read: another one is taken"
    ckpt.close()


def test_a_fenced_process_writes_nothing(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.zeros(10)
    ckpt = holdfast.Checkpointer(x=x)
    ckpt.restore()
    assert ckpt.snapshot(0)
    arena.set_fence(agent.arena().buf, ATTEMPT + 1)
    before = bytes(agent.arena().buf)
    x += 1
    assert not ckpt.snapshot(1)
    assert bytes(agent.arena().buf) == before
    assert "attempt 4 writes now" in capsys.readouterr().err
    ckpt.close()


def test_an_arena_that_is_refused_is_asked_for_again_later(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.refusal = "set checkpoint.memory.size to 3Gi"
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    ckpt.restore()
    assert not ckpt.snapshot(0)
    assert not ckpt.snapshot(1)
    assert [m.reason for m in agent.heard(local.Skipped, 2)] == [agent.refusal] * 2  # type: ignore[union-attr]
    assert len(agent.fake.of(local.Reserve)) == 1
    agent.refusal = ""
    monkeypatch.setattr(ckpt._home, "_next_reserve", 0.0)  # it asks again after ten seconds
    assert ckpt.snapshot(2)
    ckpt.close()


def test_a_snapshot_that_grows_gets_a_larger_arena(agent: Agent) -> None:
    state = {"x": torch.zeros(10)}
    ckpt = holdfast.Checkpointer(state=state)
    ckpt.restore()
    assert ckpt.snapshot(0)
    state["x"] = torch.zeros(10**6)
    assert ckpt.snapshot(1)
    assert agent.generation == 1
    ckpt.close()


def test_training_goes_on_while_the_sidecar_is_away(agent: Agent) -> None:
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    ckpt.restore()
    assert ckpt.snapshot(0)
    agent.heard(local.Sealed)
    agent.fake.close()
    slowest = 0.0
    for step in range(1, 40):
        start = time.monotonic()
        agent.commit(step - 1)
        assert ckpt.snapshot(step), "the arena is still mapped"
        slowest = max(slowest, time.monotonic() - start)
        if slowest > 5.0:
            break
    assert slowest < 5.0
    agent.fake = FakeSidecar(agent.folder / "agent.sock", agent.answer)
    steps = iter(range(40, 10_000))
    wait_until(lambda: _one_more(ckpt, agent, next(steps)) and bool(agent.fake.of(local.Sealed)))
    kinds = [type(m) for m in agent.fake.messages[:2]]
    assert kinds == [local.Attach, local.Sealed], "it says who it is, and what it has sealed"
    ckpt.close()


def _one_more(ckpt: holdfast.Checkpointer, agent: Agent, step: int) -> bool:
    agent.commit(step - 1)
    return ckpt.snapshot(step)


def test_a_sidecar_that_stops_reading_does_not_hold_up_training(agent: Agent) -> None:
    agent.fake.close()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(agent.folder / "agent.sock"))
    server.listen()

    def answer_twice() -> None:
        connection, _ = server.accept()
        kept.append(connection)
        with connection.makefile("rb") as lines:
            for _ in range(3):  # Attach, Restored, Reserve
                message, number = local.unpack(next(lines))
                if (reply := agent.answer(message)) is not None:
                    connection.sendall(local.pack(reply, number))

    kept: list[socket.socket] = []
    thread = threading.Thread(target=answer_twice)
    thread.start()
    ckpt = holdfast.Checkpointer(x=torch.zeros(10))
    ckpt.restore()
    assert ckpt.snapshot(0)
    thread.join()
    start = time.monotonic()
    for step in range(5000):  # far more than any socket's buffer takes
        ckpt._home.progress(step, 0.0)
    assert time.monotonic() - start < 10.0
    assert _one_more(ckpt, agent, 5000)
    start = time.monotonic()
    ckpt.close()
    assert time.monotonic() - start < 10.0
    for connection in (server, *kept):
        connection.close()


def test_without_any_sidecar_it_says_so_and_does_not_start_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SOCKET", str(tmp_path / "nobody.sock"))
    monkeypatch.setattr("holdfast._home.agent._ATTACH_SECONDS", 0.3)
    with pytest.raises(holdfast.AgentUnreachable, match="is the sidecar container running"):
        holdfast.Checkpointer(x=1).restore()


class Exited(BaseException):
    pass


def _exit(code: int) -> NoReturn:
    raise Exited(code)


@pytest.mark.parametrize("damage", ["data", "manifest", "header", "truncated", "other step", "gone", "no such slot"])
def test_a_lying_snapshot_is_refused_with_its_own_exit_code(
    agent: Agent, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = holdfast.Checkpointer(x=torch.arange(5000))
    ckpt.restore()
    assert ckpt.snapshot(7)
    ckpt.close()
    mapped = agent.arena()
    path, slot, step, index = mapped.path, mapped.slots()[0], 7, 0
    start = mapped.header.region(0)
    match damage:
        case "data":
            mapped.buf[start + 4000] ^= 1
        case "manifest":
            mapped.buf[start + slot.data_bytes + 50] ^= 1
        case "header":
            mapped.buf[arena.PAGE + 12] ^= 1
        case "truncated":
            del mapped
            with path.open("r+b") as file:
                file.truncate(start + 100)
        case "other step":
            step = 6
        case "gone":
            path.unlink()
        case "no such slot":
            index = 9
    agent.attached = local.Attached(str(path), index, step)
    monkeypatch.setattr("os._exit", _exit)
    x = torch.zeros(5000, dtype=torch.int64)
    with pytest.raises(Exited, match="86"):
        holdfast.Checkpointer(x=x).restore()
    if damage != "data":  # wrong bytes are found while they are copied, and the process ends before anybody sees them
        assert not x.any()
    (corrupt,) = agent.heard(local.Corrupt)
    assert corrupt.step == step  # type: ignore[union-attr]
    assert "the next level will be tried" in capsys.readouterr().err
