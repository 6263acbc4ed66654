"""What a sidecar answers: to the operator, to strangers, to its launcher and trainers, to Prometheus."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest
from holdfast_core import local, wire
from holdfast_core.config import SidecarConfig
from holdfast_core.local import Attach, Attached, Error, Progress, Restored, Sealed
from holdfast_core.messages import AgentState, Command, Source

from .conftest import MakeJob, issue_certificates
from .harness import UID, FakeTrainer, Line, Sidecar, _TlsConnection, client_context, eventually, free_port


def ask(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v1/state")
    return connection.getresponse().status


def test_only_the_jobs_own_certificate_opens_the_api(make_job: MakeJob, certificates: Path, tmp_path: Path) -> None:
    port = make_job(pods=1).sidecars[0].config.api_port
    issue_certificates(tmp_path / "other")
    mixed = tmp_path / "mixed"  # trusts the job's CA, shows another's certificate
    mixed.mkdir()
    for name, source in {"ca.crt": certificates, "tls.crt": tmp_path / "other", "tls.key": tmp_path / "other"}.items():
        (mixed / name).write_bytes((source / name).read_bytes())
    for context in (client_context(mixed), client_context(certificates, certificate=False)):
        connection = _TlsConnection("127.0.0.1", port, timeout=5, context=context)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(connection)
        connection.close()
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"job_uid" not in plain.recv(1000)


@pytest.mark.slow
def test_new_certificates_are_taken_up_without_a_restart(make_job: MakeJob, certificates: Path, tmp_path: Path) -> None:
    """As when the Secret was deleted and made again: the new CA shares nothing with the old one."""
    mounted = tmp_path / "mounted"
    shutil.copytree(certificates, mounted)
    (config,) = (s.config for s in make_job(pods=1).sidecars)
    folder, port = Path(f"{config.shared_dir}-tls"), free_port()
    sidecar = Sidecar(
        dataclasses.replace(
            config, shared_dir=str(folder), tls_dir=str(mounted), api_port=port, metrics_port=free_port(), peer_port=free_port()
        )
    )
    sidecar.start()
    try:
        issue_certificates(tmp_path / "fresh")
        assert not _opens(port, tmp_path / "fresh")
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (mounted / f"{name}.new").write_bytes((tmp_path / "fresh" / name).read_bytes())
            (mounted / f"{name}.new").replace(mounted / name)
        eventually(lambda: _opens(port, tmp_path / "fresh"), 30)
    finally:
        sidecar.terminate()


def _opens(port: int, folder: Path) -> bool:
    connection = _TlsConnection("127.0.0.1", port, timeout=5, context=client_context(folder))
    try:
        return ask(connection) == 200
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def test_commands_are_fenced_and_checked(make_job: MakeJob) -> None:
    job = make_job(pods=1)
    (sidecar,) = job.sidecars
    assert sidecar.send(Command("launch", 1))[0] == 400
    stranger = dataclasses.replace(sidecar.member, index=5)
    status, body = sidecar.send(Command("prepare", 1, members=(stranger,)))
    assert (status, body["error"]) == (400, "pod 0 is not a member of attempt 1")
    job.attempt = 4
    job.prepare()
    assert sidecar.send(Command("prepare", 4)) == (409, {"attempt": 5})
    assert sidecar.send(Command("stop", 1)) == (409, {"attempt": 5})
    assert sidecar.send(Command("prepare", 5)) == (200, {}), "the same attempt again changes nothing"
    assert sidecar.send(Command("dance", 5))[0] == 400
    assert sidecar.send(Command("finish", 6))[0] == 400
    assert sidecar.state().phase == "prepared"
    for nonsense in (b"{", b"[]", b'{"kind": 5, "attempt": 6}', b'{"kind": "prepare"}'):
        assert sidecar._request("POST", "/v1/command", nonsense)[0] == 400
    assert sidecar.state().attempt == 5


@pytest.mark.slow
def test_the_event_stream_tells_changes_at_once_and_beats_every_second(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    connection = job.sidecars[0].connection()
    connection.request("GET", "/v1/events")
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/x-ndjson"

    def next_state() -> AgentState:
        return wire.loads(AgentState, response.readline())

    first, start = next_state(), time.monotonic()
    assert first.job_uid == UID
    while time.monotonic() - start < 1.2:
        before = time.monotonic()
        next_state()
        assert time.monotonic() - before < 10
    job.prepare()
    job.launch()
    job.pods[0].launcher.end(0, 3)
    seen = next_state()
    while seen.phase != "exited":
        seen = next_state()
    assert seen.ranks[0].exit_code == 3
    connection.close()


def test_metrics_tell_what_happened(make_job: MakeJob) -> None:
    job = make_job(pods=1)
    job.begin()
    job.run(0, 4)
    job.pods[0].trainers[0].line.send(local.Skipped(0, 1, 5, "no free slot: the kept steps are not yet committed"))
    text = str(eventually(lambda: (t := job.sidecars[0].metrics()) and 'reason="no_slot"} 1.0' in t and t))
    labels = 'job_name="gpt",namespace="default"'
    for line in (
        f'holdfast_snapshots_total{{{labels},rank="0"}} 5.0',
        f'holdfast_rank_step{{{labels},rank="0"}} 4.0',
        f'holdfast_level_step{{{labels},level="memory"}} 4.0'.replace(
            f'{labels},level="memory"', 'job_name="gpt",level="memory",namespace="default"'
        ),
        f"holdfast_agent_attempt{{{labels}}} 1.0",
        f"holdfast_snapshot_stall_seconds_count{{{labels}}} 5.0",
        f'holdfast_fence_waits_total{{{labels},rank="0"}} 0.0',
        f"holdfast_snapshot_interval_steps{{{labels}}} 1.0",
    ):
        assert line in text, text
    assert "_created" not in text


# --- launcher and trainers


def test_exits_are_told_precisely(make_job: MakeJob) -> None:
    job = make_job(pods=1, processes=2, tls=False)
    job.begin()
    launcher = job.pods[0].launcher
    launcher.end(0, None, 11)
    job.wait(lambda s: s.ranks[0].signal == 11 and s.phase == "running", "rank 0 died, rank 1 runs")
    launcher.end(1, 1)
    job.wait(lambda s: s.phase == "exited" and s.ranks[1].exit_code == 1, "all ended")
    job.begin()
    job.order("stop", grace_seconds=0.1)
    job.wait(lambda s: s.phase == "exited" and [r.signal for r in s.ranks] == [9, 9], "stopped")
    job.order("finish", exit_code=3)
    job.wait(lambda s: s.phase == "finished", "finished")
    eventually(lambda: launcher.finished == 3)


def test_a_restarted_container_is_no_running_container(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    job.pods[0].launcher.restart()
    job.wait(lambda s: s.phase == "exited" and s.ranks[0].state == "lost" and s.launcher, "lost, and the launcher is back")
    assert not job.pods[0].launcher.processes, "it was not started again behind the planner's back"
    job.begin()


@pytest.mark.slow
def test_a_container_that_does_not_come_back_loses_its_ranks(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    job.pods[0].launcher.close()
    job.wait(lambda s: not s.launcher, "launcher gone")
    job.wait(lambda s: s.phase == "exited" and s.ranks[0].state == "lost", "ranks lost")


def test_words_of_an_old_attempt_change_nothing(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    old = job.pods[0].trainers.pop()
    old.snapshot(0)
    job.committed(0)
    job.begin(Source("memory", 0, 1))
    old.line.send(Progress(0, 1, 99))
    old.line.send(Sealed(0, 1, 99, old._path, 0, 1, 0.0))
    old.line.send(Restored(0, 1, 99, 0.0))
    assert old.line.ask(local.Reserve(0, 1, 1 << 40)) == Error("attempt 1 is over: attempt 2 runs now")
    job.run(1, 1)
    state = job.sidecars[0].state()
    assert (state.ranks[0].step, state.ranks[0].restored_step, state.arena_error) == (1, None, "")
    with pytest.raises(ValueError, match="fenced"):
        old.snapshot(2)
    old.close()


def test_a_trainer_is_never_silently_started_from_scratch(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    job.run(0, 1)
    job.begin(Source("memory", 1, 1))
    trainer = job.pods[0].trainers[0]
    assert isinstance(trainer.attached, Attached)
    assert trainer.attached.step == 1
    trainer.line.send(Restored(0, 2, 1, 0.1))
    job.run(2, 6)
    again = Line(folder / "p0")
    assert again.ask(Attach(0, 2)) == Attached(), "in the middle of training there is nothing to restore"
    again.close()
    job.wait(lambda s: s.ranks[0].restored_step == 1, "restored")


def test_nonsense_on_the_socket_drops_only_that_connection(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    wrong_type = b'{"kind":"Attach","id":1,"body":{"rank":"x"}}\n'
    for nonsense in (b"hello\n", b'{"kind": "Launch", "body": {}}\n', wrong_type, b"x" * (5 << 20)):
        line = Line(folder / "p0")
        try:
            line._socket.sendall(nonsense)
            assert line._file.readline() == b""
        except ConnectionError:
            pass
        line.close()
    stranger = FakeTrainer(job.sidecars[0], 7, 1)
    assert isinstance(stranger.attached, Error)
    stranger.close()
    job.run(0, 1)


def test_an_arena_that_is_too_small_says_what_to_set(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False, memory_limit=2 << 20)
    job.begin()
    trainer = job.pods[0].trainers[0]
    reply = trainer.reserve(1 << 20)
    assert isinstance(reply, Error)
    assert "set checkpoint.memory.size to 1Mi" in reply.message
    job.wait(lambda s: s.arena_error == reply.message, "told in the state")
    assert isinstance(trainer.reserve(300_000), local.Reserved)
    job.wait(lambda s: s.arena_error == "" and s.slot_bytes >= 300_000, "healed")
    job.run(0, 1)


def test_a_size_that_does_not_fit_fails_the_start_but_not_the_api(folder: Path) -> None:
    config = SidecarConfig(
        UID, "gpt", "default", "gpt-0", 0, 0, 1, 1, slot_bytes=1 << 20, memory_limit=1 << 20,
        shared_dir=str(folder / "p"), tls_dir="", metrics_port=free_port(),
    )  # fmt: skip
    sidecar = Sidecar(config).start(healthy=False)
    try:
        eventually(lambda: sidecar.health()[0] == 503 and "checkpoint.memory.size" in sidecar.health()[1])
        assert "set checkpoint.memory.size to 1Mi" in sidecar.state().arena_error
    finally:
        sidecar.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tls_dir": "/nowhere"}, "/nowhere/ca.crt"),
        ({"shared_dir": "/proc/nowhere"}, "/proc/nowhere"),
        ({"shared_dir": "/tmp/" + "x" * 200}, "longer than 107 bytes"),
    ],
)
def test_what_prevents_a_start_is_one_line(folder: Path, change: dict[str, str], says: str) -> None:
    config = SidecarConfig(UID, "gpt", "default", "gpt-0", 0, 0, 1, 1, shared_dir=str(folder / "p"), tls_dir="", metrics_port=0)
    sidecar = Sidecar(dataclasses.replace(config, **change), log=folder / "log").start(healthy=False, fresh=True)
    assert sidecar.process
    assert sidecar.process.wait(15) == 2
    assert says in sidecar.log()
    assert "Traceback" not in sidecar.log()
    assert len(sidecar.log().splitlines()) == 1


def test_the_injected_packages_need_nothing_else(make_job: MakeJob, folder: Path) -> None:
    import subprocess
    import sys

    make_job(pods=1, tls=False)
    code = "import holdfast_core.local, holdfast, sys; print(holdfast.__file__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": f"{folder}/p0/lib"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [f"{folder}/p0/lib/holdfast/__init__.py", "False"]


def test_a_job_without_stores_has_an_empty_inventory(make_job: MakeJob) -> None:
    (sidecar,) = make_job(pods=1, tls=False).sidecars
    status, body = sidecar._request("GET", "/v1/inventory")
    assert (status, json.loads(body)) == (200, {"stores": []})
