"""Connections to sidecars over real mTLS: what is heard, what silence and refusals look like, orders, inventories."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_sidecar import FakeSidecar
from holdfast_core.messages import AgentState, Command, Inventory, RankState, StoreInventory
from holdfast_operator import certificates
from holdfast_operator.agents import Links
from operator_waiting import until

FILES = certificates.issue("uid", datetime.datetime.now(datetime.UTC))
STATE = AgentState("uid", "pod-0", 0, 1, phase="running", launcher=True)
HOST = "127.77.1.1"


class Bench:
    """One fake sidecar, and the links under test."""

    def __init__(self, folder: Path) -> None:
        self.woken: list[bool] = []
        self.sidecar = FakeSidecar(HOST, STATE, FILES, folder)
        self.links = Links("uid", self.woken.append)
        self.links.set_tls(certificates.client_context(FILES))

    @property
    def heard(self):
        return self.links.heard("pod-0")

    def connect(self) -> None:
        self.links.update({"pod-0": HOST})


def run(folder: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def go() -> None:
        bench = Bench(folder)
        try:
            await asyncio.wait_for(story(bench), 90)
        finally:
            await bench.links.close()
            await bench.sidecar.stop()

    asyncio.run(go())


def test_states_are_heard_and_only_news_are_urgent(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.heard.agent == STATE)
        assert bench.heard.age is not None
        assert (bench.heard.failures, bench.heard.refused) == (0, False)
        assert bench.woken == [True]
        stepped = dataclasses.replace(STATE, ranks=(RankState(0, "running", step=5),))
        await bench.sidecar.say(stepped)
        await until(lambda: bench.heard.agent == stepped)
        further = dataclasses.replace(STATE, ranks=(RankState(0, "running", step=6),))
        await bench.sidecar.say(further)
        await until(lambda: bench.heard.agent == further)
        assert bench.woken[1:3] == [True, False]  # a rank appeared; then only its step changed
        died = dataclasses.replace(STATE, ranks=(RankState(0, "exited", signal=9, step=6),))
        await bench.sidecar.say(died)
        await until(lambda: bench.heard.agent == died)
        assert bench.woken[-1] is True

    run(tmp_path, story)


def test_a_refusal_shows_that_the_network_is_alive_and_it_is_dialled_until_it_is_back(tmp_path):
    async def story(bench: Bench) -> None:
        bench.connect()
        await until(lambda: bench.heard.failures >= 2)
        assert bench.heard.refused
        assert bench.heard.agent is None
        await bench.sidecar.start()
        await until(lambda: bench.heard.agent is not None)
        assert (bench.heard.failures, bench.heard.refused) == (0, False)
        await bench.sidecar.stop()
        await until(lambda: bench.heard.failures >= 1)
        assert bench.heard.agent == STATE  # what was known last

    run(tmp_path, story)


def test_an_address_that_does_not_answer_is_no_refusal(tmp_path):
    async def story(bench: Bench) -> None:
        # A listener that accepts nothing: its backlog is full, so a dial gets no answer at all.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, 7470))
            listener.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex((HOST, 7470))
            bench.connect()
            await until(lambda: bench.heard.failures >= 1)
            assert not bench.heard.refused
            assert bench.heard.error
            for filler in fillers:
                filler.close()

    run(tmp_path, story)


@pytest.mark.parametrize(
    "stranger", [dataclasses.replace(STATE, job_uid="other"), dataclasses.replace(STATE, pod="pod-9")], ids=["job", "pod"]
)
def test_a_state_of_somebody_else_is_dropped(tmp_path, stranger: AgentState):
    async def story(bench: Bench) -> None:
        bench.sidecar.state = stranger
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.heard.failures >= 1)
        assert bench.heard.agent is None
        assert "not pod-0" in bench.heard.error

    run(tmp_path, story)


def test_a_sidecar_with_another_jobs_certificate_is_not_believed(tmp_path):
    async def story(bench: Bench) -> None:
        other = certificates.issue("uid", datetime.datetime.now(datetime.UTC))
        bench.sidecar = FakeSidecar(HOST, STATE, other, tmp_path)
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.heard.failures >= 1)
        assert bench.heard.agent is None
        assert bench.heard.refused  # something answers there
        assert "certificate" in bench.heard.error

    run(tmp_path, story)


def test_orders_arrive_in_order_and_are_not_doubled(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.heard.agent is not None)
        for _ in range(3):
            bench.links.send("pod-0", Command("stop", 1))
            bench.links.send("pod-0", Command("prepare", 2))
        bench.links.send("nobody", Command("stop", 1))
        await until(lambda: len(bench.sidecar.commands) == 2)
        assert [c.kind for c in bench.sidecar.commands] == ["stop", "prepare"]
        bench.sidecar.answer = 409

        def again() -> bool:
            bench.links.send("pod-0", Command("prepare", 2))
            return len(bench.sidecar.commands) >= 3

        await until(again)  # once the first was answered, the same may be sent again

    run(tmp_path, story)


def test_inventories(tmp_path):
    async def story(bench: Bench) -> None:
        bench.sidecar.inventory = Inventory((StoreInventory("pvc", unusable=("x",)),))
        await bench.sidecar.start()
        bench.connect()
        assert await bench.links.inventory("pod-0") == bench.sidecar.inventory
        bench.sidecar.inventory = None
        with pytest.raises(OSError, match="500"):
            await bench.links.inventory("pod-0")
        with pytest.raises(OSError, match="no connection"):
            await bench.links.inventory("nobody")

    run(tmp_path, story)


def test_connections_follow_the_pods(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.links.connected() == 1)
        bench.links.update({})
        assert bench.links.connected() == 0
        assert bench.heard.agent is None
        bench.connect()
        await until(lambda: bench.sidecar.streams == 2)

    run(tmp_path, story)
