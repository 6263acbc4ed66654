"""kopf's watches, turned into wake-ups. No persistence, no finalizers, no annotations: only `on.event`.

An event is a hint. At the start of a watch, and after each loss of it, kopf lists everything again (event type None); what was
deleted in between is not told. So each reconciler also lists its own pods and reads its job now and then.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from typing import Any, cast

import kopf

from . import names
from .reconciler import Reconciler, Services
from .settings import Settings

log = logging.getLogger(__name__)


class Manager:
    """The reconcilers of all jobs, by UID."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: dict[str, tuple[Reconciler, asyncio.Task[None]]] = {}

    def job_event(self, kind: str | None, body: dict[str, Any]) -> None:
        """A TrainingJob appeared, changed or went."""
        meta = body["metadata"]
        entry = self._running.get(meta["uid"])
        if kind == "DELETED":
            if entry is not None:
                entry[0].keeper.distrust()
                entry[0].wake()
            return
        reconciler = entry[0] if entry is not None else self._start(meta)
        reconciler.keeper.announce(meta["resourceVersion"])
        reconciler.wake()

    def pod_event(self, kind: str | None, pod: dict[str, Any]) -> None:
        """A pod of some job appeared, changed or went."""
        entry = self._running.get((pod["metadata"].get("labels") or {}).get(names.LABEL_UID, ""))
        if entry is not None:
            entry[0].pods.event(kind, pod)
            entry[0].wake()

    async def close(self) -> None:
        """Stop all."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, meta: dict[str, Any]) -> Reconciler:
        reconciler = Reconciler(self._services, meta["namespace"], meta["name"], meta["uid"])
        task = asyncio.create_task(reconciler.run(), name=f"job {meta['namespace']}/{meta['name']}")
        self._running[meta["uid"]] = (reconciler, task)
        task.add_done_callback(lambda _: self._running.pop(meta["uid"], None))
        return reconciler


def registry(manager: Manager, configuration: Any) -> kopf.OperatorRegistry:
    """What kopf is to watch, and how it logs in."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        auth = configuration.auth_settings().get("BearerToken") or {}
        token = str(auth.get("value") or "").removeprefix("Bearer ").removeprefix("bearer ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme="Bearer" if token else None,
            token=token or None,
        )

    @kopf.on.cleanup(registry=handlers)
    async def clean_up(**_: Any) -> None:
        await manager.close()  # before kopf waits for all tasks that were started since its start

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)
    async def on_job(event: kopf.RawEvent, **_: Any) -> None:
        manager.job_event(event["type"], dict(event["object"]))

    @kopf.on.event("", "v1", "pods", labels={names.LABEL_UID: kopf.PRESENT}, registry=handlers)
    async def on_pod(event: kopf.RawEvent, **_: Any) -> None:
        manager.pod_event(event["type"], dict(event["object"]))

    return handlers


class Patience:
    """Seconds between tries of a watch, without end: an API server that is away for an hour is no reason to give up."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0), itertools.repeat(4.0))


def kopf_settings() -> kopf.OperatorSettings:
    """kopf without what it keeps in objects, with bounded waits."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.networking.connect_timeout = 3
    chosen.networking.request_timeout = 15
    chosen.networking.error_backoffs = Patience()
    chosen.watching.server_timeout = 240
    chosen.watching.client_timeout = 300
    chosen.watching.inactivity_timeout = 75
    chosen.watching.connect_timeout = 3
    chosen.queueing.exit_timeout = 0.5  # an event that is lost at the exit is listed at the next start
    chosen.queueing.idle_timeout = 1.0
    chosen.watching.label_selectors["", "v1", "pods"] = names.LABEL_UID
    return chosen


async def watch(manager: Manager, configuration: Any, settings: Settings, ready: asyncio.Event) -> None:
    """Run kopf until it is told to stop (SIGTERM, SIGINT)."""
    await kopf.operator(
        registry=registry(manager, configuration),
        settings=kopf_settings(),
        identity=cast(Any, names.COMPONENT),  # else it asks for a user name, which a container may lack
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        ready_flag=ready,
    )
