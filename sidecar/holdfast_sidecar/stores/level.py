"""A durable level as the sidecar uses it: the store behind its lane, its health, what is committed in it.

Errors show here and heal here: a store is probed at the start, and every few seconds while it is in error.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from holdfast_core.config import StoreConfig
from holdfast_core.messages import StoreInventory, StoreState
from holdfast_core.timeline import Copy, History, is_valid, merge, valid

from .base import Store, StoreError
from .lane import Lane, Pulse
from .steps import Steps

T = TypeVar("T")
PROBE_SECONDS = 2.0
_INVENTORY_LIMIT = 20.0  # seconds
_PROBE_LIMIT = 15.0
_NEED = 1 << 20  # bytes that a store must have room for, before the size of a shard is known
_log = logging.getLogger(__name__)


@dataclass
class Level:
    """One store. `committed` is the newest valid step that is known in it, `known` whether that was looked up."""

    config: StoreConfig
    world_size: int
    changed: Callable[[], None]
    failed: Callable[[str], None]  # counts errors, by level
    committed: Copy | None = None
    known: bool = False
    uploaded_bytes: int = 0
    seconds: float = 0.0
    need: int = _NEED

    def __post_init__(self) -> None:
        self.lane = Lane(self.config.name)
        self._steps: Steps | None = None
        self._probe_error = "not reached yet"
        self._upload_error = ""
        self._others_error = ""
        self._wake = asyncio.Event()

    @property
    def name(self) -> str:
        """The user's name for it."""
        return self.config.name

    @property
    def error(self) -> str:
        """Why the store can't be used; empty when the last access worked."""
        return self._upload_error or self._others_error or ("" if self._probe_error == "not reached yet" else self._probe_error)

    @property
    def reachable(self) -> bool:
        """Whether the last probe worked."""
        return not self._probe_error

    @property
    def state(self) -> StoreState:
        """For `AgentState`."""
        return StoreState(self.name, self.error, self.committed, self.uploaded_bytes, self.seconds)

    async def call(self, work: Callable[[Steps, Pulse], T], limit: float | None = None) -> T:
        """Do something with the checkpoints in the store, in its lane. Raises StoreError."""
        return await self.lane.call(lambda pulse: work(self._opened(), pulse), limit)

    def _opened(self) -> Steps:
        if self._steps is None:
            self._steps = Steps(make_store(self.config, os.environ), self.world_size)
        return self._steps

    # --- health

    async def watch(self) -> None:
        """Probe at the start, and while anything is wrong. Never ends."""
        while True:
            if self._probe_error:
                await self._probe()
            self._wake.clear()
            try:
                async with asyncio.timeout(PROBE_SECONDS if self._probe_error else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _probe(self) -> None:
        try:
            await self.call(lambda steps, _: steps.store.probe(self.need), _PROBE_LIMIT)
        except StoreError as error:
            self._set_probe_error(str(error))
        else:
            self._set_probe_error("")

    def _set_probe_error(self, text: str) -> None:
        if text == self._probe_error:
            return
        if text:
            _log.warning("store %s: %s", self.name, text)
            self.failed(self.name)
        elif self.error:
            _log.info("store %s works", self.name)
        self._probe_error = text
        self.changed()

    def upload_failed(self, error: Exception, need: int = 0) -> None:
        """An upload or commit could not be done because of the store: probe it until it works."""
        text = str(error)
        self.failed(self.name)
        if text != self._upload_error:
            _log.warning("store %s: %s", self.name, text)
        self._upload_error = text
        self.need = max(_NEED, need)
        self._probe_error = self._probe_error or text
        self._wake.set()
        self.changed()

    def upload_worked(self) -> None:
        """Forget the error of an earlier upload."""
        if self._upload_error:
            _log.info("store %s works", self.name)
            self._upload_error = ""
            self.changed()

    def failed_elsewhere(self, text: str) -> None:
        """Another pod could not upload: told here too until a step is committed, because here is where it is asked."""
        self._others_error = text
        self.changed()

    # --- contents

    def set_committed(self, copy: Copy | None, seconds: float | None = None) -> None:
        """Note the newest step in the store."""
        self.committed, self.known = copy, True
        if seconds is not None:
            self.seconds, self._others_error = seconds, ""
        self.changed()

    def forget_void(self, history: History) -> None:
        """A new attempt resumed below what was the newest step here."""
        if self.committed is not None and not is_valid(self.committed, history):
            self.committed = None

    async def inventory(self) -> StoreInventory:
        """What the store holds; an error is part of the answer."""
        try:
            return await self.call(lambda steps, _: steps.inventory(self.name), _INVENTORY_LIMIT)
        except StoreError as error:
            return StoreInventory(self.name, error=str(error))

    async def refresh(self, history: History) -> None:
        """Look up the newest step that counts. After an error `known` is false."""
        self.known = False
        found = await self.inventory()
        if found.error:
            self._set_probe_error(found.error)
            self._wake.set()
            return
        self.set_committed(max(valid(found.copies, merge(found.history, history)), default=None))


def make_store(config: StoreConfig, environment: Mapping[str, str]) -> Store:
    """The store that a URL stands for; raises StoreError."""
    url = urlsplit(config.url)
    if url.scheme == "file" and url.path.startswith("/"):
        from .filesystem import FileStore

        return FileStore(config.name, Path(url.path))
    if url.scheme == "s3" and url.netloc:
        from .objects import ObjectStore  # late: importing s3fs takes a second

        given = _credentials(config.env_prefix, environment)
        return ObjectStore(config.name, url.netloc, url.path, given, login=bool(config.env_prefix))
    raise StoreError(f"store {config.name!r}: url {config.url!r} must be file:///folder or s3://bucket/prefix")


def _credentials(prefix: str, environment: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in environment.items() if k.startswith(f"{prefix}AWS_")}
