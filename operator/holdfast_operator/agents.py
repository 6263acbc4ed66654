"""Connections to the sidecars of one job: an event stream from each, orders to each. Never blocks a reconcile pass.

A stream that breaks or falls silent is dialled again at once and for ever, and a silent pod is knocked at; what that brings (a
refusal, or no answer at all) is evidence for the planner, which alone decides whether a pod is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from holdfast_core import config, wire
from holdfast_core.messages import AgentState, Command, Inventory

from .knock import knock
from .observe import Heard

log = logging.getLogger(__name__)

_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=1.5, sock_read=3.0)  # heartbeats come twice a second
_COMMAND = aiohttp.ClientTimeout(total=3.0, sock_connect=1.5)
_INVENTORY = aiohttp.ClientTimeout(total=30.0, sock_connect=1.5)
_LINE = 4 * 2**20  # longest line: the state of many ranks with their last log lines
_PAUSE = 0.25  # seconds between dials
_SILENT = 0.8  # seconds without a word after which the pod is knocked at
_NEVER_HEARD = 5.0  # the same for one that may still be starting
_NEXT_KNOCK = {True: 0.5, False: 0.05, None: 0.5}  # seconds after one that was answered, or not

Wake = Callable[[bool], None]


class Link:
    """The connection to one pod's sidecar. `wake(urgent)` is called for each line, urgent if more than steps changed, and when
    the stream breaks or a knock at the silent pod has brought something. `ports`: of the sidecar's API, and to knock at."""

    def __init__(
        self, job_uid: str, pod: str, host: str, ports: tuple[int, int], tls: ssl.SSLContext | None, wake: Wake
    ) -> None:
        self._uid, self.pod, self._wake = job_uid, pod, wake
        self._door, port = (host, ports[1]), ports[0]
        self._url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls or False, limit=0, force_close=True))
        self._name = config.TLS_NAME if tls else None
        self._agent: AgentState | None = None
        self._heard: float | None = None
        self._since = time.monotonic()
        self._failures, self._refused, self._error = 0, False, ""
        self._answers, self._unanswered = False, 0
        self._sending: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._order = asyncio.Lock()
        self._reader = asyncio.create_task(self._follow(), name=f"events of {pod}")
        self._knocking = asyncio.create_task(self._knock(), name=f"knocks at {pod}")

    @property
    def heard(self) -> Heard:
        """What is known now."""
        now = time.monotonic()
        age = None if self._heard is None else now - self._heard
        return Heard(
            self._agent, age, self._failures, self._refused, now - self._since, self._error, self._answers, self._unanswered
        )

    async def close(self) -> None:
        """End the stream and what is being sent."""
        await self._session.close()  # first: it aborts connections, where leaving them would wait for a peer that may be gone
        tasks = [self._reader, self._knocking, *self._sending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def send(self, command: Command) -> None:
        """Send an order in the background; the same order is not sent twice at a time."""
        key = (command.kind, command.attempt)
        if key not in self._sending:
            task = asyncio.create_task(self._send(command), name=f"{command.kind} to {self.pod}")
            self._sending[key] = task
            task.add_done_callback(lambda _: self._sending.pop(key, None))

    async def inventory(self) -> Inventory:
        """What the stores hold, as this sidecar sees them; raises OSError, TimeoutError or wire.WireError."""
        try:
            async with self._session.get(f"{self._url}/v1/inventory", timeout=_INVENTORY, server_hostname=self._name) as answer:
                answer.raise_for_status()
                return wire.loads(Inventory, await answer.read())
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error

    async def _send(self, command: Command) -> None:
        async with self._order:
            try:
                async with self._session.post(
                    f"{self._url}/v1/command", data=wire.dumps(command), timeout=_COMMAND, server_hostname=self._name,
                    headers={"Content-Type": "application/json"},
                ) as answer:  # fmt: skip
                    if answer.status not in (200, 409):  # 409: it already knows a later attempt, its state will tell
                        log.warning("%s refused %s: %s", self.pod, command.kind, (await answer.text())[:300])
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.info("%s did not get %s: %s", self.pod, command.kind, describe(error))

    async def _follow(self) -> None:
        while True:
            before = self._heard
            try:
                await self._stream()
                error: BaseException = EOFError("the stream ended")
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as caught:
                error = caught
            self._error = describe(error)
            if self._heard == before:  # nothing was heard: the dial failed. A stream that breaks is not that yet.
                self._failures, self._refused = self._failures + 1, answered(error)
            else:
                self._wake(True)
            await asyncio.sleep(_PAUSE)

    async def _knock(self) -> None:
        """While it is silent, ask whether anything at its address answers."""
        while True:
            before, now = self._heard, time.monotonic()
            due = self._since + _NEVER_HEARD if before is None else before + _SILENT
            if now <= due:
                await asyncio.sleep(min(due - now + 0.01, _SILENT))
                continue
            answer = await knock(*self._door)
            if self._heard == before:
                self._note_knock(answer)
            await asyncio.sleep(_NEXT_KNOCK[answer])

    def _note_knock(self, answer: bool | None) -> None:
        known = self._answers, self._unanswered
        if answer is not None:
            self._answers, self._unanswered = answer, 0 if answer else self._unanswered + 1
        if known != (self._answers, self._unanswered):
            self._wake(True)

    async def _stream(self) -> None:
        async with self._session.get(
            f"{self._url}/v1/events", timeout=_STREAM, server_hostname=self._name, read_bufsize=_LINE
        ) as answer:
            answer.raise_for_status()
            await self._read(answer.content)

    async def _read(self, lines: aiohttp.StreamReader) -> None:
        async for line in lines:
            state = wire.loads(AgentState, line)
            if (state.job_uid, state.pod) != (self._uid, self.pod):
                raise wire.WireError(f"this is {state.pod} of job {state.job_uid}, not {self.pod}")
            urgent = self._agent is None or essence(state) != essence(self._agent)
            self._agent, self._heard = state, time.monotonic()
            self._failures, self._refused, self._error = 0, False, ""
            self._answers, self._unanswered = False, 0
            self._wake(urgent)


class Links:
    """All connections of a job, kept in step with its pods."""

    def __init__(self, job_uid: str, wake: Wake, port: int = config.API_PORT, peer_port: int = config.PEER_PORT) -> None:
        self._uid, self._wake, self._ports = job_uid, wake, (port, peer_port)
        self._links: dict[str, Link] = {}
        self._hosts: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def set_tls(self, tls: ssl.SSLContext | None) -> None:
        """Use this for new connections. Existing ones are made anew."""
        self._tls = tls
        self.update({})

    def update(self, hosts: Mapping[str, str]) -> None:
        """Have a connection to exactly these pods (name to address)."""
        for name in [n for n in self._links if hosts.get(n) != self._hosts[n]]:
            self._retire(self._links.pop(name))
        for name in hosts.keys() - self._links.keys():
            self._links[name] = Link(self._uid, name, hosts[name], self._ports, self._tls, self._wake)
        self._hosts = dict(hosts)

    def heard(self, pod: str) -> Heard:
        """What is known from a pod's sidecar."""
        link = self._links.get(pod)
        return link.heard if link else Heard()

    def connected(self) -> int:
        """Number of sidecars heard in the last 3 seconds."""
        ages = [link.heard.age for link in self._links.values()]
        return sum(1 for age in ages if age is not None and age <= 3.0)

    def send(self, pod: str, command: Command) -> None:
        """Send an order in the background, if there is a connection to that pod."""
        link = self._links.get(pod)
        if link is not None:
            link.send(command)

    async def inventory(self, pod: str) -> Inventory:
        """As `Link.inventory`."""
        link = self._links.get(pod)
        if link is None:
            raise OSError(f"no connection to {pod}")
        return await link.inventory()

    async def close(self) -> None:
        """Close all."""
        self.update({})
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _retire(self, link: Link) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def essence(state: AgentState) -> tuple[Any, ...]:
    """What of a state calls for a decision: all but the progress of steps."""
    ranks = tuple((r.rank, r.state, r.exit_code, r.signal, r.corrupt) for r in state.ranks)
    stores = tuple((s.name, s.error) for s in state.stores)
    return (
        state.attempt, state.phase, state.launcher, state.error, state.error_source, state.arena_error, state.slot_bytes,
        ranks, stores, frozenset(state.silent), state.unprotected,
    )  # fmt: skip


def answered(error: BaseException) -> bool:
    """Whether something at that address answered: the pod's network is alive, its sidecar is not (or is not ours)."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | aiohttp.ClientResponseError):
        return True
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | EOFError | ValueError):
        return True
    inner = getattr(error, "os_error", error)
    return isinstance(inner, OSError) and inner.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)


def describe(error: BaseException) -> str:
    """An error in one line; some of aiohttp's have no text."""
    with contextlib.suppress(AttributeError):
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return type(error).__name__
