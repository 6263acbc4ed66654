"""The operator's side of the wire against a real sidecar process: events, inventories, orders, a crash and its return."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast_core import wire
from holdfast_core.config import SidecarConfig, StoreConfig
from holdfast_core.messages import Command, Inventory, StoreInventory
from holdfast_operator import certificates
from holdfast_operator.agents import Links
from operator_waiting import until
from ports import free_port

FILES = certificates.issue("uid", datetime.datetime.now(datetime.UTC))
HOST = "127.0.0.1"


class Sidecar:
    """A sidecar as a process; `start` may be called again after `kill`."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        (folder / "tls").mkdir()
        for name, text in FILES.items():
            (folder / "tls" / name).write_text(text)
        store = StoreConfig("pvc", f"file://{folder}/store/team/gpt", every_steps=1)
        self._config = SidecarConfig(
            "uid", "gpt", "team", "pod-0", 0, 0, 1, 1,
            slot_bytes=4096, stores=(store,), shared_dir=str(folder / "shared"), tls_dir=str(folder / "tls"),
            api_port=self.port, metrics_port=0, peer_port=free_port(),
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self._folder / "shared").mkdir(exist_ok=True)
        (self._folder / "store").mkdir(exist_ok=True)
        env = os.environ | {"HOLDFAST_CONFIG": wire.dumps(self._config).decode()}
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "holdfast_sidecar"], env=env, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:  # short: the path of a Unix socket is made from it
        made = Sidecar(Path(folder))
        try:
            yield made
        finally:
            made.kill()


def test_a_real_sidecar(sidecar: Sidecar):
    async def story() -> None:
        links = Links("uid", lambda urgent: None, sidecar.port)
        links.set_tls(certificates.client_context(FILES))
        try:
            sidecar.start()
            links.update({"pod-0": HOST})
            await until(lambda: links.heard("pod-0").agent is not None, 30)
            first = links.heard("pod-0").agent
            assert first is not None
            assert (first.job_uid, first.pod, first.phase, first.launcher) == ("uid", "pod-0", "idle", False)
            assert await links.inventory("pod-0") == Inventory((StoreInventory("pvc"),))
            links.send("pod-0", Command("stop", 3, grace_seconds=0.0))
            sidecar.kill()
            await until(lambda: links.heard("pod-0").failures >= 1)
            assert links.heard("pod-0").refused
            sidecar.start()
            await until(lambda: links.heard("pod-0").failures == 0, 30)
        finally:
            await links.close()

    asyncio.run(asyncio.wait_for(story(), 90))
