"""The peer server as such: how many it serves at a time, and its end."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers import Fault, PeerError
from holdfast_sidecar.peers.server import PeerServer

from .conftest import MakePods
from .peer_pods import PeerJob, PeerPod, encode, protected


def server(pod: PeerPod) -> PeerServer:
    found = pod.peers._server
    assert found is not None
    return found


def fault(job: PeerJob, rank: int, copy: Copy) -> PeerError:
    with pytest.raises(PeerError) as error:
        encode(job, rank, copy)
    return error.value


def test_how_many_are_served_at_a_time_depends_on_the_jobs_shape(make_pods: MakePods) -> None:
    job = make_pods(2, processes=4, encrypted=False, group_size=32)
    place, copy = job.pods[1].place, job.seal(3, [5000] * 8)
    with ExitStack() as stack:
        for _ in range(300):  # all of them in their handshake
            stack.enter_context(socket.create_connection((place.host, place.port), 5))
        assert encode(job, 0, copy, (0, 4)) > 0


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_server_that_is_closed_during_a_handshake_serves_nothing_after_it(make_pods: MakePods, encrypted: bool) -> None:
    job, copy = protected(make_pods, 2, encrypted=encrypted)
    closed = server(job.pods[1])
    shake_hands = closed._access.to_client

    def close_meanwhile(sock: socket.socket, stall: float) -> Any:
        channel = shake_hands(sock, stall)
        job.pods[1].close()
        return channel

    closed._access.to_client = close_meanwhile  # type: ignore[method-assign]
    assert fault(job, 0, copy).kind is Fault.UNREACHABLE
    assert not closed._clients
