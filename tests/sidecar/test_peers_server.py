"""The peer server as such: how many it serves at a time, and its end."""

from __future__ import annotations

import socket
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
