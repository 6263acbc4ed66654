"""Wires the parts together and runs them: start-up in the order that the startup probe promises, SIGTERM, the end.

config -> arenas, record, stores -> Lifecycle (commands, phases) <- Api (operator), group WebSocket (other sidecars)
                                          ^- LocalSocket (launcher, trainers)
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from holdfast_core.config import LIB_DIR, SOCKET, SidecarConfig
from holdfast_core.messages import Command, Order, Reached
from holdfast_core.timeline import Copy

from . import assumed, tls
from .api import Api, monitoring
from .arenas import Arenas
from .changes import Changes
from .group.member import Member
from .injection import InjectionError, inject
from .lifecycle import Lifecycle
from .local_socket import LocalSocket, require_short
from .logs import WHERE
from .metrics import Metrics
from .peers import Peers
from .ranks import Ranks
from .record import FINISHED, IDLE, RecordFile
from .replication import Replicator
from .state import States
from .stores.level import Level
from .trainers import Trainers

_SHUTDOWN = 1.0  # seconds for open requests
_QUIET = 1.5  # seconds without an upload before a pod that is told to go, goes
_log = logging.getLogger(__name__)


class App:
    """One sidecar process."""

    def __init__(self, config: SidecarConfig) -> None:
        self.config = config
        shared = Path(config.shared_dir)
        self._run_dir, self._socket_path = (shared / SOCKET).parent, shared / SOCKET
        self._lib = shared / LIB_DIR
        self._api_socket = self._run_dir / "api.sock"
        self._assumed = self._run_dir / "index"
        self.changes = Changes()
        self.metrics = Metrics(config.namespace, config.job)
        levels = [Level(s, config.world_size, self.changes.touch, self._store_failed) for s in config.stores]
        self.levels = {level.name: level for level in levels}
        self.arenas = Arenas(config)
        self.ranks = Ranks(config.first_rank, config.processes)
        records = RecordFile(self._run_dir / "state.json")
        self.peers = self._make_peers() if config.tls_dir else None
        self.replicator = (
            Replicator(config, self.arenas, self.peers, self.metrics, lambda: self.changes.touch(urgent=False))
            if self.peers is not None
            else None
        )
        self.lifecycle = Lifecycle(
            config, self.arenas, self.ranks, self.levels, self.metrics, self.changes, records, self.replicator
        )
        self.lifecycle.make_member = self._make_member
        self.lifecycle.assume = self._assume
        WHERE.attempt = lambda: self.lifecycle.record.attempt
        life = self.lifecycle
        self.trainers = Trainers(
            self.arenas, self.ranks, self.metrics, lambda: life.record, life.sealed, life.skipped, life.rank_changed
        )
        life.interval_changed = self.trainers.pace.forget_steps
        self.states = States(life, self.trainers)
        self.metrics.watch(self.states, self.levels, self.arenas.ranks)
        self._local = LocalSocket(self._socket_path, life.launcher, self.trainers)
        self._missing = "starting"
        self._client_tls: ssl.SSLContext | None = None
        self._following: asyncio.Task[None] | None = None
        self._runners: list[web.AppRunner] = []
        self._stop = asyncio.Event()

    def _make_peers(self) -> Peers:
        return Peers(self.config, self.arenas, lambda: self.lifecycle.record.attempt, self._corrupt)

    def _store_failed(self, name: str) -> None:
        self.metrics.count(self.metrics.errors, name)

    def _corrupt(self, rank: int, copy: Copy, problem: str) -> None:
        """Found while serving it to a peer, in a thread. It is forgotten already; the operator is to hear that at once."""
        _log.warning("rank %d: step %d in memory is damaged: %s", rank, copy.step, problem)
        self._loop.call_soon_threadsafe(self.changes.touch)

    def _assume(self, index: int) -> None:
        """This spare takes the place of a pod: from now on it has that one's ranks. Kept for a restart of this container."""
        config = replace(self.config, index=index, first_rank=index * self.config.processes)
        assumed.save(self._assumed, index)
        self.config = self.lifecycle.config = config
        self.arenas.assume(config)
        self.ranks.assume(config.first_rank)
        if self.replicator is not None:
            self.replicator.config = config
            self.replicator.peers.assume(config)
        self.metrics.know_ranks(self.arenas.ranks)

    # --- start and end

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError or TlsError if it can't start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        self._loop = asyncio.get_running_loop()
        self._make_folders()
        index = assumed.load(self._assumed) if self.config.index < 0 else None
        if index is not None:
            self._assume(index)
        if self.config.tls_dir:
            self._client_tls = tls.client_context(Path(self.config.tls_dir))
        self.lifecycle.resume()
        if self.peers is not None:
            self.peers.start()
        background = [asyncio.create_task(work) for work in self._background()]
        try:
            await self._listen()
            await self._local.start()
            ready = asyncio.create_task(self._become_ready())
            await self._stop.wait()
            ready.cancel()
            await self._leave()
        finally:
            for task in background:
                task.cancel()
            await self._close()

    def _make_folders(self) -> None:
        require_short(self._api_socket)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        for folder in (self._run_dir.parent, self._run_dir):
            _open_to_all(folder)

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.lifecycle.launcher.watch(),
            self.lifecycle.uploads.renew_leases(),
            *(level.watch() for level in self.levels.values()),
        ]

    async def _become_ready(self) -> None:
        """Everything that must be there before the trainer may start."""
        try:
            await asyncio.to_thread(inject, self._lib)
        except (InjectionError, OSError) as error:
            self._missing = str(error)
            _log.error("%s", error)
            if self.config.tls_dir:
                return
        self._missing = "" if await self.lifecycle.prefault() else self.arenas.error or "the arenas could not be created"
        _log.info("ready" if not self._missing else "not ready")

    async def _leave(self) -> None:
        """The pod is to go: bring the newest step to peers and stores while our memory is still there, for a bounded time."""
        _log.info("asked to stop")
        if self.lifecycle.record.phase in (IDLE, FINISHED):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_seconds):
                await asyncio.gather(self._until_protected(), self._until_stored())

    async def _until_protected(self) -> None:
        """The others can do without us when all hold parity of what was committed; until then they need our bytes. Without a
        coordinator there is nobody to say so."""
        life = self.lifecycle
        while self.replicator is not None and self.replicator.awaits(life.record.committed):
            if life.member is None or not life.member.connected:
                return
            await asyncio.sleep(0.05)

    async def _until_stored(self) -> None:
        if not self.levels:
            return
        if self.lifecycle.coordinator is not None:
            await self.lifecycle.coordinator.flush()
            await self.lifecycle.drain()
        await self._quiet()

    async def _quiet(self) -> None:
        """Others may be told to go a moment later, and order an upload then."""
        since = time.monotonic()
        while time.monotonic() - since < _QUIET:
            await asyncio.sleep(0.1)
            if self.lifecycle.uploads.busy:
                since = time.monotonic()

    async def _close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._local.close()
        await self.lifecycle.close()
        if self.peers is not None:
            self.peers.close()
        for runner in self._runners:
            await runner.cleanup()

    # --- network

    async def _listen(self) -> None:
        api = Api(self.lifecycle, self.states, self.changes, self.levels).application()
        runner = await self._runner(api)
        if self.config.tls_dir:
            context = tls.server_context(Path(self.config.tls_dir))
            self._following = asyncio.create_task(tls.follow(Path(self.config.tls_dir), context, *self._client_contexts()))
            site: web.BaseSite = web.TCPSite(runner, "0.0.0.0", self.config.api_port, ssl_context=context)  # noqa: S104
        else:
            self._api_socket.unlink(missing_ok=True)
            site = web.UnixSite(runner, str(self._api_socket))
        await site.start()
        if self.config.metrics_port:
            plain = await self._runner(monitoring(self.metrics, lambda: self._missing))
            await web.TCPSite(plain, "0.0.0.0", self.config.metrics_port).start()  # noqa: S104 - probes and Prometheus

    def _client_contexts(self) -> list[ssl.SSLContext]:
        of_peers = self.peers.contexts if self.peers is not None else ()
        return [*([self._client_tls] if self._client_tls else []), *of_peers]

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_SHUTDOWN)
        self._runners.append(runner)
        await runner.setup()
        return runner

    def _make_member(self, command: Command, everything: Callable[[], list[Reached]], obey: Callable[[Order], None]) -> Member:
        first = command.members[0]
        if not self.config.tls_dir:
            path = str(self._api_socket)
            return Member(
                "http://sidecar/v1/group", lambda: aiohttp.UnixConnector(path), None, command.attempt,
                self.config.index, everything, obey,
            )  # fmt: skip
        host = "127.0.0.1" if first.index == self.config.index else first.host
        url = f"https://{f'[{host}]' if ':' in host else host}:{first.port}/v1/group"
        return Member(url, aiohttp.TCPConnector, self._client_tls, command.attempt, self.config.index, everything, obey)


def _open_to_all(folder: Path) -> None:
    """The trainer may run as another user. The volume's root belongs to the kubelet: then it is as it should be."""
    try:
        os.chmod(folder, 0o777)  # noqa: S103 - only this pod sees the volume
    except PermissionError:
        _log.debug("%s belongs to somebody else", folder)
