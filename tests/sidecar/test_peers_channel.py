"""Documents on a plain connection: who can write into it, but does not know the job's key, can say nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers.channel import Channel, Refused

_KEY = b"k" * 32
_LIMIT = 1000


class Wire:
    """A client and a server with somebody between them."""

    def __init__(self) -> None:
        self._sockets = [*socket.socketpair(), *socket.socketpair()]
        self.client = Channel(self._sockets[0], 5, _KEY, b"c")
        self.server = Channel(self._sockets[3], 5, _KEY, b"s")

    def take(self) -> bytearray:
        """What the client has sent."""
        return bytearray(self._sockets[1].recv(_LIMIT))

    def to_server(self, raw: bytes | bytearray) -> None:
        self._sockets[2].sendall(raw)

    def to_client(self, raw: bytes | bytearray) -> None:
        self._sockets[1].sendall(raw)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def test_documents_arrive_in_order(wire: Wire) -> None:
    for step in (1, 2, 3):
        wire.client.send(Copy(step, 1))
    wire.to_server(wire.take())
    assert [wire.server.receive(Copy, _LIMIT).step for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("at", [4, 10, -1, -32])
def test_a_document_that_was_changed_is_refused(wire: Wire, at: int) -> None:
    wire.client.send(Copy(3, 1))
    raw = wire.take()
    raw[at] ^= 1
    wire.to_server(raw)
    with pytest.raises(Refused, match="not sealed"):
        wire.server.receive(Copy, _LIMIT)


def test_a_document_that_is_sent_again_is_refused(wire: Wire) -> None:
    wire.client.send(Copy(3, 1))
    raw = wire.take()
    wire.to_server(raw + raw)
    assert wire.server.receive(Copy, _LIMIT) == Copy(3, 1)
    with pytest.raises(Refused, match="not sealed"):
        wire.server.receive(Copy, _LIMIT)


def test_a_document_that_is_sent_back_is_refused(wire: Wire) -> None:
    wire.client.send(Copy(3, 1))
    wire.to_client(wire.take())
    with pytest.raises(Refused, match="not sealed"):
        wire.client.receive(Copy, _LIMIT)


def test_a_document_that_is_too_long_is_not_even_read(wire: Wire) -> None:
    wire.to_server((_LIMIT + 1).to_bytes(4, "little"))
    with pytest.raises(Refused, match="1001 bytes"):
        wire.server.receive(Copy, _LIMIT)
