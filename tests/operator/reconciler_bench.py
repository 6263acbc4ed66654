"""One job and its operator, but for the cluster: an API server in memory, sidecars on loopback with the job's own mTLS."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fake_api import FakeApi
from fake_sidecar import FakeSidecar
from holdfast_core.messages import AgentState, RankState
from holdfast_operator import certificates
from holdfast_operator.events import EventPoster
from holdfast_operator.metrics import Metrics
from holdfast_operator.reconciler import Reconciler, Services
from holdfast_operator.settings import Settings
from operator_samples import job
from operator_waiting import play, until

JOB = "/apis/holdfast.dev/v1alpha1/namespaces/team/trainingjobs/gpt"
PODS = "/api/v1/namespaces/team/pods"
SECRET = "/api/v1/namespaces/team/secrets/gpt-holdfast-tls"
SETTINGS = Settings("sidecar:1")
SERVICE = "/api/v1/namespaces/team/services/gpt"
_NETWORK = f"127.{80 + os.getpid() // 256 % 160}.{os.getpid() % 256}"  # all sidecars have one port, and tests run side by side


class Bench:
    """One job, its API server and its sidecars. `kubelet` starts what was created."""

    def __init__(self, folder: Path) -> None:
        self.api = FakeApi()
        body = job(checkpoint={"memory": {"size": "auto", "slots": 3}, "stores": []})
        self.uid = body["metadata"]["uid"]
        self.api.put(JOB, body)
        self.metrics, self.folder = Metrics(), folder
        self.sidecars: dict[str, FakeSidecar] = {}
        self._hosts = itertools.count(1)
        self.events = EventPoster(self.api)  # type: ignore[arg-type]
        self.tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self, settings: Settings = SETTINGS) -> None:
        """An operator that knows nothing yet."""
        services = Services(self.api, settings, self.events, self.metrics)  # type: ignore[arg-type]
        self.reconciler = Reconciler(services, "team", "gpt", self.uid)
        self.tasks = [asyncio.create_task(self.reconciler.run()), asyncio.create_task(self.events.run())]

    async def close(self) -> None:
        await self.kill()
        await asyncio.gather(*(s.stop() for s in self.sidecars.values()))

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def status(self) -> dict[str, Any]:
        made: dict[str, Any] = self.api.objects[JOB].get("status", {})
        return made

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def change(self, body: dict[str, Any]) -> None:
        """Somebody writes the job."""
        made = self.api.put(JOB, body)
        self.reconciler.keeper.announce(made["metadata"]["resourceVersion"])
        self.reconciler.wake()

    def pods(self) -> list[str]:
        return sorted(p.rsplit("/", 1)[-1] for p in self.api.objects if p.startswith(f"{PODS}/"))

    def schedule(self) -> None:
        """Each pod gets a node of its own: n0, n1, ..."""
        for number, name in enumerate(self.pods()):
            self.api.objects[f"{PODS}/{name}"]["spec"]["nodeName"] = f"n{number}"
            self.show(name, {"phase": "Pending"})

    async def kubelet(self) -> None:
        """Every pod runs, with a sidecar that answers."""
        files = certificates.from_secret(self.api.objects[SECRET]["data"])
        for name in self.pods():
            if name in self.sidecars:
                continue
            place = name.split("-")[-2]
            index = -1 if place.startswith("s") else int(place)
            host = f"{_NETWORK}.{next(self._hosts)}"
            self.sidecars[name] = FakeSidecar(host, AgentState(self.uid, name, index, 0, launcher=True), files, self.folder)
            await self.sidecars[name].start()
            self.show(name, {"phase": "Running", "podIP": host})

    def show(self, name: str, pod_status: dict[str, Any], kind: str = "MODIFIED") -> None:
        body = self.api.put(f"{PODS}/{name}", self.api.objects[f"{PODS}/{name}"] | {"status": pod_status})
        self.reconciler.pods.event(kind, body)
        self.reconciler.wake()

    @property
    def working(self) -> list[FakeSidecar]:
        """Those with ranks."""
        return [s for s in self.sidecars.values() if s.state.index >= 0]

    async def obey(self, attempt: int, step: int) -> None:
        """Sidecars do as they are told: prepare, launch; then the ranks finish a step."""
        kinds = ("prepare", "launch")
        for phase, kind in zip(("prepared", "running"), kinds, strict=True):
            for sidecar in self.working:
                await until(lambda s=sidecar, k=kind: any((c.kind, c.attempt) == (k, attempt) for c in s.commands))
                await sidecar.say(dataclasses.replace(sidecar.state, attempt=attempt, phase=phase, ranks=()))
        await until(lambda: self.status.get("stage") == "running")
        await self.steps(step)

    async def steps(self, step: int) -> None:
        for sidecar in self.working:
            rank = RankState(sidecar.state.index, "running", pid=1, step=step)
            await sidecar.say(dataclasses.replace(sidecar.state, ranks=(rank,)))


def run(folder: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    play(lambda: Bench(folder), story)


async def running(bench: Bench) -> None:
    await until(lambda: len(bench.pods()) == 2)
    await bench.kubelet()
    await bench.obey(1, 3)
    await until(lambda: bench.status.get("phase") == "Running")


def events(bench: Bench, reason: str) -> int:
    """How many there are."""
    return sum("/events/" in path and body["reason"] == reason for path, body in bench.api.objects.items())


def with_spec(bench: Bench, **parts: dict[str, Any]) -> None:
    """Change parts of the spec."""
    body = copy.deepcopy(bench.api.objects[JOB])
    for name, part in parts.items():
        body["spec"].setdefault(name, {}).update(part)
    bench.change(body)
