"""Peers that are slow, hung, dead, lying, strangers or of another attempt."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast_core.config import TLS_NAME
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers import Fault, PeerError, holdings, sums
from holdfast_sidecar.peers.server import PeerServer
from holdfast_sidecar.peers.throttle import Throttle

from .conftest import MakePods, issue_certificates
from .harness import client_context, eventually, free_port
from .peer_pods import SIZE, PeerJob, PeerPod, encode, protected


def fault(job: PeerJob, rank: int, copy: Copy, group: tuple[int, ...] = ()) -> PeerError:
    """What building one rank's parity fails with."""
    with pytest.raises(PeerError) as error:
        encode(job, rank, copy, group)
    assert rank not in job.pod_of(rank).peers.parity.whole()
    return error.value


def server(pod: PeerPod) -> PeerServer:
    found = pod.peers._server
    assert found is not None
    return found


# --- damaged bytes


def test_a_flipped_bit_in_a_peers_memory_is_found_named_and_told_to_its_owner(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    view = job.pods[1].view(1, copy)
    view.data()[4_900_000] ^= 0x20
    error = fault(job, 2, copy)
    assert error.kind is Fault.CORRUPT
    assert error.index == 1
    assert "memory damages data" in str(error)
    assert [(rank, at) for rank, at, _ in job.pods[1].corrupt] == [(1, copy)]
    assert job.pods[1].arenas.sealed() == {1: ()}, "nobody is to count on it any more"
    assert fault(job, 2, copy).kind is Fault.LACKS


def test_a_flipped_bit_in_a_manifest_is_found_too(make_pods: MakePods) -> None:
    job, copy = protected(make_pods, 2)
    encode(job, 1, copy)
    job.pods[1].peers.parity.drop(1, copy)
    view = job.pods[0].view(0, copy)
    at = view.file.header.region(view.slot.index) + view.slot.data_bytes + 40
    view.file.buf[at] ^= 1
    assert fault(job, 1, copy).index == 0
    assert [(rank, at) for rank, at, _ in job.pods[0].corrupt] == [(0, copy)]
    assert job.pods[0].arenas.sealed() == {0: ()}


def test_what_reads_well_the_second_time_is_not_given_up(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    job, copy = protected(make_pods)
    view = job.pods[1].view(1, copy)
    view.data()[4_900_000] ^= 0x20
    look, looks = holdings.crc32, itertools.count()

    def mended(chunk: memoryview) -> int:
        if next(looks) == 1:
            view.data()[4_900_000] ^= 0x20
        return look(chunk)

    monkeypatch.setattr(holdings, "crc32", mended)
    assert fault(job, 2, copy).kind is Fault.LYING, "it was wrong on its way, and is not in memory"
    assert job.pods[1].arenas.sealed() == {1: (copy,)}
    assert not job.pods[1].corrupt


def lie_with_bytes(liar: PeerServer) -> None:
    def send(channel: Any, readable: Any, at: int, end: int) -> None:
        wrong = bytearray(readable.view[at:end])
        wrong[len(wrong) // 2] ^= 1
        channel.send_bytes(b"\x02\0\0\0" + len(wrong).to_bytes(4, "little") + wrong)

    liar._send_window = send  # type: ignore[method-assign]


def lie_with_sums(liar: PeerServer) -> None:
    tiles_of = liar._holdings._tiles_of

    def wrong(slot: Any) -> Any:
        tiles = tiles_of(slot)
        chunks = tiles.chunks.copy()
        chunks["crc"] ^= 1
        return dataclasses.replace(tiles, chunks=chunks)

    liar._holdings._tiles_of = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize("lie", [lie_with_bytes, lie_with_sums])
def test_a_lying_peer_is_found_on_arrival_and_named(make_pods: MakePods, lie: Callable[[PeerServer], None]) -> None:
    job, copy = protected(make_pods)
    lie(server(job.pods[1]))
    error = fault(job, 0, copy)
    assert error.kind in (Fault.LYING, Fault.CORRUPT)  # who lies about sums finds the same lie when asked to look again
    assert (error.index, error.pod) == (1, job.pods[1].config.pod)


def test_a_peer_that_sends_a_table_with_holes_is_refused(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    job, copy = protected(make_pods)
    monkeypatch.setattr("holdfast_sidecar.peers.server.table", lambda *args: sums.table(*args)[:-16])
    assert fault(job, 0, copy).kind is Fault.REFUSED


# --- slow, hung, dead


def test_a_hung_peer_is_waited_for_a_bounded_time(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    forever = threading.Event()
    server(job.pods[1])._send_part = lambda *_: forever.wait()  # type: ignore[method-assign]
    job.pods[0].peers.stall = 0.5
    started = time.monotonic()
    error = fault(job, 0, copy)
    forever.set()
    assert error.kind is Fault.STALLED
    assert error.index == 1
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_peer_that_trickles_is_named_though_it_is_never_silent(make_pods: MakePods, encrypted: bool) -> None:
    job, copy = protected(make_pods, encrypted=encrypted)
    server(job.pods[1])._throttle = Throttle(200_000)  # its own line is that slow, nobody has limited it
    job.pods[0].peers.stall = 1.0
    started = time.monotonic()
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.STALLED, 1)
    assert "less than" in str(error)
    assert time.monotonic() - started < 6


def test_a_peer_that_keeps_to_the_limit_is_waited_for(make_pods: MakePods) -> None:
    job, copy = protected(make_pods, bandwidth=1_500_000)
    job.pods[0].peers.stall = 1.0
    started = time.monotonic()
    assert encode(job, 0, copy) > 0
    assert time.monotonic() - started > 1.0


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_peer_that_dies_in_mid_stream_is_named(make_pods: MakePods, encrypted: bool) -> None:
    job, copy = protected(make_pods, encrypted=encrypted)
    dying = server(job.pods[2])
    send = dying._send_window

    def die(channel: Any, readable: Any, at: int, end: int) -> None:
        send(channel, readable, at, at + (end - at) // 2)
        job.pods[2].close()

    dying._send_window = die  # type: ignore[method-assign]
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.UNREACHABLE, 2)


def test_a_peer_that_is_not_there_is_named_at_once(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    job.pods[1].close()
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.UNREACHABLE, 1)
    assert "Connection refused" in str(error)


def test_a_peer_without_the_step_says_so(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    job.pods[1].view(1, copy).clear()
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.LACKS, 1)
    assert "step 3" in str(error)


def test_a_slot_that_is_reused_while_it_is_sent_spoils_nothing(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    sender = server(job.pods[1])
    send = sender._send_window

    def reuse(channel: Any, readable: Any, at: int, end: int) -> None:
        send(channel, readable, at, end)
        job.pods[1].view(1, copy).clear()

    sender._send_window = reuse  # type: ignore[method-assign]
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.LACKS, 1)
    assert not job.pods[1].corrupt


def test_work_that_nobody_waits_for_any_more_ends_at_once_and_makes_way(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    entered, forever = threading.Event(), threading.Event()
    hanging = server(job.pods[1])
    send = hanging._send_part
    hanging._send_part = lambda *_: (entered.set(), forever.wait())  # type: ignore[assignment,method-assign,return-value]

    async def cancel() -> None:
        job.pods[0].peers.stall = 60
        task = asyncio.create_task(job.pods[0].peers.encode(0, copy, (0, 1, 2), 1, job.places))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    hanging._send_part = send  # type: ignore[method-assign]
    assert encode(job, 0, copy) > 0
    forever.set()


def test_a_limit_holds_for_all_connections_together(make_pods: MakePods) -> None:
    job, copy = protected(make_pods, 2, bandwidth=4 * SIZE)
    started = time.monotonic()
    job.protect(copy)
    assert time.monotonic() - started > 0.15  # a quarter of a second, less what may be sent at once


# --- attempts


def test_a_pod_of_an_old_attempt_is_fenced(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    for pod in job.pods[1:]:
        pod.fence(2)
    error = fault(job, 0, copy)
    assert error.kind is Fault.FENCED
    assert "attempt 1 is over" in str(error)


def test_a_stream_ends_when_the_next_attempt_begins(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    sender = server(job.pods[1])
    send = sender._send_window

    def begin(*args: Any) -> None:
        job.pods[1].fence(2)
        send(*args)

    sender._window = 1 << 20
    sender._send_window = begin  # type: ignore[method-assign]
    assert fault(job, 0, copy).kind is Fault.FENCED


def test_a_pod_that_is_ahead_waits_for_the_others_to_follow(make_pods: MakePods) -> None:
    job, copy = protected(make_pods)
    job.pods[0].fence(2)
    late = threading.Timer(0.3, lambda: [pod.fence(2) for pod in job.pods[1:]])
    late.start()
    assert encode(job, 0, copy) > 0
    late.join()


def test_a_pod_that_never_follows_is_named(make_pods: MakePods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_sidecar.peers.client.PATIENCE", 0.2)
    job, copy = protected(make_pods)
    job.pods[0].fence(2)
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.NOT_YET, 1)


# --- strangers


def use_certificates(pod: PeerPod, folder: Path) -> None:
    """From here on the pod has other ones."""
    pod.close()
    pod.config = dataclasses.replace(pod.config, tls_dir=str(folder), peer_port=free_port())
    pod.open()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_pod_with_another_jobs_secret_is_refused_and_refuses(make_pods: MakePods, tmp_path: Path, encrypted: bool) -> None:
    job, copy = protected(make_pods, encrypted=encrypted)
    issue_certificates(tmp_path / "other")
    use_certificates(job.pods[2], tmp_path / "other")
    assert fault(job, 2, copy).kind is Fault.REFUSED
    error = fault(job, 0, copy)
    assert (error.kind, error.index) == (Fault.REFUSED, 2)
    assert "same Secret" in str(error)


def test_a_pod_of_a_job_of_the_same_name_before_is_refused(make_pods: MakePods) -> None:
    """It may be the old job's pod that has not ended yet, with the Secret that both had."""
    job, copy = protected(make_pods)
    job.pods[0].peers._config = dataclasses.replace(job.pods[0].config, job_uid="of-the-one-before")
    error = fault(job, 0, copy)
    assert error.kind is Fault.REFUSED
    assert f"it belongs to job {job.pods[1].config.job_uid}" in str(error)


def test_a_client_without_a_certificate_is_served_nothing(make_pods: MakePods, certificates: Path) -> None:
    job, _ = protected(make_pods, encrypted=True)
    place = job.pods[0].place
    context = client_context(certificates, certificate=False)
    with (
        socket.create_connection((place.host, place.port), 5) as plain,
        context.wrap_socket(plain, server_hostname=TLS_NAME) as secure,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        ask(secure)


def ask(secure: ssl.SSLSocket) -> None:
    secure.sendall(b"\x02\0\0\0{}")
    assert secure.recv(1)


def test_without_encryption_a_client_without_the_key_is_served_nothing(make_pods: MakePods) -> None:
    job, _ = protected(make_pods)
    place = job.pods[0].place
    with socket.create_connection((place.host, place.port), 5) as sock:
        sock.sendall(b"HFPEER1\n" + bytes(16))
        assert len(sock.recv(48, socket.MSG_WAITALL)) == 48
        sock.sendall(b"\x02\0\0\0{}" + bytes(32))
        assert sock.recv(1) == b""


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 70_000, b"HFPEER1\n" + b"x" * 100])
def test_garbage_ends_its_connection_and_nothing_else(make_pods: MakePods, encrypted: bool, garbage: bytes) -> None:
    job, copy = protected(make_pods, 2, encrypted=encrypted)
    place = job.pods[1].place
    with socket.create_connection((place.host, place.port), 5) as sock:
        try:
            sock.sendall(garbage)
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass
    assert encode(job, 0, copy) > 0


@pytest.mark.parametrize("encrypted", [True, False])
def test_who_only_looks_whether_a_pod_is_there_leaves_no_trace(
    make_pods: MakePods, encrypted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    job, _ = protected(make_pods, 2, encrypted=encrypted)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            socket.create_connection((job.pods[0].place.host, job.pods[0].place.port), 5).close()
        eventually(lambda: not server(job.pods[0])._clients, what="connections gone")
    assert not [r for r in caplog.records if r.name.startswith("holdfast_sidecar.peers")]
