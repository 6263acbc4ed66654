"""Connections between peers are kept from one step to the next, and given up when they are old or broken; and who moves bytes
goes last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from holdfast_sidecar.peers import PeerError, PeerPlace
from holdfast_sidecar.peers.aside import NICENESS
from holdfast_sidecar.peers.channel import Channel
from holdfast_sidecar.peers.idle import AGE, Idle

from .conftest import MakePods
from .harness import eventually
from .peer_pods import PeerPod, encode

PLACE = PeerPlace(0, "gpt-0", "127.0.0.1", 7472, 0, 1)


def clients(pod: PeerPod) -> set[int]:
    """Who is connected to its server, by the number of the socket's port."""
    server = pod.peers._server
    assert server is not None
    return {sock.getpeername()[1] for sock in tuple(server._clients)}


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_next_step_goes_over_the_same_connections(make_pods: MakePods, encrypted: bool) -> None:
    job = make_pods(3, encrypted=encrypted)
    job.protect(job.seal(1, [50_000] * 3))
    before = [clients(pod) for pod in job.pods]
    assert [len(ports) for ports in before] == [2, 2, 2], "each is connected to both others"
    job.protect(job.seal(2, [50_000] * 3))
    assert [clients(pod) for pod in job.pods] == before


def test_a_server_that_was_started_anew_is_connected_to_anew(make_pods: MakePods) -> None:
    job = make_pods(2)
    job.protect(job.seal(1, [50_000] * 2))
    job.pods[1].peers.close()
    job.pods[1].open()
    copy = job.seal(2, [50_000] * 2)
    job.protect(copy)
    assert all(pod.peers.parity.find(pod.config.first_rank, copy) for pod in job.pods)


def test_what_was_begun_and_not_ended_is_not_used_again(make_pods: MakePods) -> None:
    job = make_pods(2, bandwidth=100_000)
    copy = job.seal(1, [1_000_000] * 2)  # ten seconds on the line
    server = job.pods[1].peers._server
    assert server is not None

    async def give_up_in_the_middle() -> None:
        work = asyncio.create_task(job.pods[0].peers.encode(0, copy, (0, 1), 1, job.places))
        await asyncio.to_thread(eventually, lambda: server.sent > 1000)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    asyncio.run(asyncio.wait_for(give_up_in_the_middle(), 20))
    eventually(lambda: not clients(job.pods[1]), what="it hung up")


def test_what_another_peers_fault_ended_in_the_middle_is_not_used_again(make_pods: MakePods) -> None:
    job = make_pods(3)
    copy = job.seal(1, [5_000_000] * 3)
    view = job.pods[1].view(1, copy).data()
    view[100] ^= 1
    with pytest.raises(PeerError):
        encode(job, 0, copy, (0, 1, 2))
    assert encode(job, 0, copy, (0, 2)) > 0, "pod 1 has forgotten it, pod 2 sent more than was taken"


def test_the_threads_that_move_bytes_let_others_go_first(make_pods: MakePods) -> None:
    job = make_pods(2, bandwidth=100_000)
    copy = job.seal(1, [1_000_000] * 2)

    before = set(threading.enumerate())  # other tests' threads may still be ending
    expected = {("peer", NICENESS, os.SCHED_BATCH), ("encode-0", NICENESS, os.SCHED_BATCH)}

    async def look_in_the_middle() -> None:
        work = asyncio.create_task(job.pods[0].peers.encode(0, copy, (0, 1), 1, job.places))
        await asyncio.to_thread(eventually, lambda: movers(before) == expected, what="all who move bytes are behind")
        work.cancel()

    asyncio.run(asyncio.wait_for(look_in_the_middle(), 20))
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0, "the event loop does not"


def movers(before: set[threading.Thread]) -> set[tuple[str, int, int]]:
    """New threads that move bytes: name, niceness and policy."""
    found = set()
    for thread in set(threading.enumerate()) - before:
        if thread.name in ("peer", "encode-0") and (number := thread.native_id):
            with contextlib.suppress(ProcessLookupError):
                found.add((thread.name, os.getpriority(os.PRIO_PROCESS, number), os.sched_getscheduler(number)))
    return found


# --- alone


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield Channel(ours, 1.0), theirs
    ours.close()
    theirs.close()


def test_one_that_waited_is_used_once(pair: tuple[Channel, socket.socket]) -> None:
    idle = Idle()
    line = idle.new(pair[0])
    idle.give(PLACE, line)
    assert idle.take(PLACE) is line
    assert idle.take(PLACE) is None


def test_an_old_one_is_given_up(pair: tuple[Channel, socket.socket]) -> None:
    now = [0.0]
    idle = Idle(lambda: now[0])
    idle.give(PLACE, idle.new(pair[0]))
    now[0] = AGE
    assert idle.take(PLACE) is None
    assert pair[1].recv(1) == b"", "hung up"


def test_a_closed_one_is_given_up(pair: tuple[Channel, socket.socket]) -> None:
    idle = Idle()
    idle.give(PLACE, idle.new(pair[0]))
    pair[1].close()
    assert idle.take(PLACE) is None
