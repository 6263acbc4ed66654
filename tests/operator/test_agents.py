"""Connections to sidecars over real mTLS: what is heard, what silence and refusals look like, orders, inventories."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_sidecar import FakeSidecar
from holdfast_core import config
from holdfast_core.messages import AgentState, Command, Inventory, RankState, StoreInventory
from holdfast_operator import certificates
from holdfast_operator.agents import Links, essence
from holdfast_operator.knock import knock
from operator_waiting import play, unanswering, until

FILES = certificates.issue("uid", datetime.datetime.now(datetime.UTC))
STATE = AgentState("uid", "pod-0", 0, 1, phase="running", launcher=True)
HOST = f"127.77.{os.getpid() // 256 % 256}.{os.getpid() % 256}"  # another checkout's tests may run on this machine


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

    async def close(self) -> None:
        await self.links.close()
        await self.sidecar.stop()

    def connect(self) -> None:
        self.links.update({"pod-0": HOST})


def run(folder: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    play(lambda: Bench(folder), story)


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
        with unanswering(HOST, config.API_PORT):
            bench.connect()
            await until(lambda: bench.heard.failures >= 1)
            assert not bench.heard.refused
            assert bench.heard.error

    run(tmp_path, story)


def test_a_node_that_does_not_answer_is_noticed_within_seconds(tmp_path):
    """The stream stays open and brings nothing, as with a node without power: no FIN, no RST."""

    async def story(bench: Bench) -> None:
        await bench.sidecar.start()
        with unanswering(HOST, config.PEER_PORT):
            bench.connect()
            await until(lambda: bench.heard.agent is not None)
            assert (bench.heard.answers, bench.heard.unanswered) == (False, 0)
            bench.sidecar.hold()
            woken = len(bench.woken)
            await until(lambda: bench.heard.unanswered >= 2)
            assert bench.heard.age < 10, "silence of 0.8 s, then two knocks of 0.7 s"
            assert not bench.heard.answers
            assert bench.woken[woken:].count(True) >= 2, "each result calls for a look"
            bench.sidecar.go_on()
            await until(lambda: bench.heard.unanswered == 0)
            assert bench.heard.age < 1.0

    run(tmp_path, story)


@pytest.mark.parametrize("listens", [True, False], ids=["accepted", "refused"])
def test_a_node_whose_kernel_answers_is_told_from_a_dead_one(tmp_path, listens: bool):
    """Nobody accepts: the process may have no CPU. The kernel completes the connect, or refuses it, all the same."""

    async def story(bench: Bench) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, config.PEER_PORT if listens else 0))
            listener.listen(64)
            await bench.sidecar.start()
            bench.connect()
            await until(lambda: bench.heard.agent is not None)
            bench.sidecar.hold()
            await until(lambda: bench.heard.answers)
            assert bench.heard.unanswered == 0
            await until(lambda: bench.heard.age > 2.5)
            assert (bench.heard.answers, bench.heard.unanswered) == (True, 0)

    run(tmp_path, story)


def test_a_stream_that_breaks_calls_for_a_look_at_once(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.sidecar.start()
        bench.connect()
        await until(lambda: bench.heard.agent is not None)
        woken = len(bench.woken)
        await bench.sidecar.stop()
        await until(lambda: True in bench.woken[woken:], 5)

    run(tmp_path, story)


@pytest.mark.parametrize("state", [{"silent": {2: 1.4}}, {"unprotected": (2,)}], ids=["a silent peer", "a pod left out"])
def test_what_peers_say_of_each_other_is_urgent(state):
    assert essence(dataclasses.replace(STATE, **state)) != essence(STATE)
    assert essence(dataclasses.replace(STATE, silent={2: 1.4})) == essence(dataclasses.replace(STATE, silent={2: 2.4}))


def test_a_knock_that_fails_here_says_nothing_of_the_pod():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def go() -> bool | None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no descriptors are left
        try:
            return await knock(HOST, config.PEER_PORT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert asyncio.run(go()) is None


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
        await until(lambda: bench.heard.agent is not None)
        assert bench.links.connected() == 1
        streams = bench.sidecar.streams
        bench.links.update({})
        assert bench.links.connected() == 0
        assert bench.heard.agent is None
        bench.connect()
        await until(lambda: bench.sidecar.streams > streams)

    run(tmp_path, story)
