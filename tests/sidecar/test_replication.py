"""What a member tells of the rounds that it takes part in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from holdfast_core.config import PeersConfig, SidecarConfig
from holdfast_core.erasure.groups import Group
from holdfast_core.messages import PEERS, Member, Order
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers import Fault, PeerError
from holdfast_sidecar.replication import Replicator, place

from .harness import UID

MEMBERS = tuple(Member(i, f"p{i}", "h", 1, i, 1) for i in range(2))
Encode = Callable[[], Any]


def order(kind: str, step: int, reason: str = "") -> Order:
    return Order(kind, 1, PEERS, Copy(step, 1), groups=(Group((0, 1), 1),), round=step, reason=reason)


def replicator(outcomes: list[Encode]) -> Replicator:
    """Pod 0, whose rounds come out as is told, one after the other."""

    async def encode(*_: Any) -> int:
        return await outcomes.pop(0)()

    parity = SimpleNamespace(whole=dict, keep=lambda _: None, drop=lambda *_: None, holds=lambda *_: False)
    peers = SimpleNamespace(parity=parity, encode=encode)
    arenas = SimpleNamespace(ranks=range(1), keep=lambda *_: None)
    config = SidecarConfig(UID, "gpt", "default", "p0", 0, 0, 1, 2, peers=PeersConfig())
    made = Replicator(config, arenas, peers, SimpleNamespace(replicated=lambda *_, **__: None), lambda: None)  # type: ignore[arg-type]
    made._members = MEMBERS
    return made


async def fails() -> int:
    raise PeerError(Fault.STALLED, "it sends nothing", place(MEMBERS[1]))


async def works() -> int:
    return 5


async def takes_long() -> int:
    await asyncio.sleep(60)
    return 0


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def told(made: Replicator) -> str:
    return made.last.error if made.last else ""


def test_why_the_last_round_failed_is_told_until_one_works() -> None:
    async def rounds() -> None:
        made = replicator([fails, takes_long, works])
        made.obey(order("replicate", 1), lambda _: None)
        await settle()
        assert "pod p1" in told(made)
        made.obey(order("release", 1), lambda _: None)
        made.obey(order("replicate", 2), lambda _: None)
        await settle()
        assert "pod p1" in told(made), "nothing has become better yet"
        made.obey(order("replicate", 3), lambda _: None)
        await settle()
        assert made.last is not None
        assert (made.last.copy, made.last.error, made.last.received) == (Copy(3, 1), "", 5)

    asyncio.run(rounds())


def test_a_round_that_was_given_up_because_it_took_too_long_is_told() -> None:
    async def rounds() -> None:
        made = replicator([takes_long])
        made.obey(order("replicate", 1), lambda _: None)
        await settle()
        made.obey(order("release", 1, "it was not done within 600 s: pod 3 did not finish"), lambda _: None)
        assert "pod 3" in told(made)

    asyncio.run(rounds())
