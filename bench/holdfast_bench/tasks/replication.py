"""One pod of two that protect each other, in a network namespace of its own: its arena and its peer server, the real ones, and
beside them a bare socket that sends the same bytes without any checksum, parity or protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import mmap
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from holdfast_core import arena, manifest
from holdfast_core.arena import NO_STEP
from holdfast_core.config import TLS_NAME, PeersConfig, SidecarConfig
from holdfast_core.manifest import Entry, SlotManifest
from holdfast_core.timeline import Copy
from holdfast_sidecar import tls
from holdfast_sidecar.arenas import Arenas
from holdfast_sidecar.peers import PeerPlace, Peers

from ..namespaces import enter

_UID = "bench"
_TENSOR = 4 << 20  # bytes
_RECEIVE = 1 << 20  # bytes of a call of the bare receiver
_PORTS = {"plain": 31000, "tls": 31001, "bare plain": 31002, "bare tls": 31003}  # not those of sidecars: tests fake these


class Task:
    """Verbs: open, seal, encode, keep, memory, bare, facts, quit. Pods are numbered from 0; all seal step 1."""

    def __init__(self, system: str) -> None:
        self._folder = Path(os.environ["HOLDFAST_BENCH_FOLDER"])
        self._peers: dict[str, Peers] = {}

    def open(
        self, namespace: str, index: int, hosts: list[str], sizes: list[int], certificates: dict[str, str], slots: int = 1
    ) -> None:
        """Enter the namespace (none: ""), seal a snapshot of `sizes[index]` bytes, and serve it in every way."""
        if namespace:
            enter(namespace)
        self._index, self._hosts, self._nbytes = index, hosts, sizes[index]
        (self._folder / "tls").mkdir()
        for name, text in certificates.items():
            (self._folder / "tls" / name).write_text(text)
        self._config = SidecarConfig(
            _UID, "bench", "default", f"bench-{index}", index, index, 1, len(hosts),
            slots=slots, shared_dir=str(self._folder), tls_dir=str(self._folder / "tls"),
        )  # fmt: skip
        self._arenas = Arenas(self._config)
        self._arenas.adopt()
        self._arenas.fence(1)
        self.seal(1)
        for way in ("plain", "tls"):
            peers = PeersConfig(encrypted=way == "tls")
            config = dataclasses.replace(
                self._config, peers=peers, peer_port=_port(way, index), shared_dir=str(self._folder / way)
            )
            self._peers[way] = Peers(config, self._arenas, lambda: 1, lambda *_: None)
            self._peers[way].start()
        self._serve_bare()

    def _places(self, way: str) -> list[PeerPlace]:
        return [PeerPlace(i, f"bench-{i}", host, _port(way, i), i, 1) for i, host in enumerate(self._hosts)]

    # --- ours

    def seal(self, step: int) -> None:
        """Take a snapshot."""
        _seal(self._arenas, self._index, len(self._hosts), self._nbytes, step)

    def keep(self, way: str, steps: list[int]) -> None:
        """These are protected, or about to be: as the sidecars keep them."""
        self._arenas.commit(max(steps))
        self._arenas.keep(*[*steps, NO_STEP][:2])
        self._peers[way].parity.keep([Copy(step, 1) for step in steps])

    def encode(self, way: str, parity: int = 1, step: int = 1) -> dict[str, float]:
        """This pod's parity of a step, built anew; all pods are the group."""
        peers, copy = self._peers[way], Copy(step, 1)
        peers.parity.drop(self._index, copy)
        group = tuple(range(len(self._hosts)))
        started, used = time.perf_counter(), time.process_time()
        received = asyncio.run(peers.encode(self._index, copy, group, parity, self._places(way)))
        took = time.perf_counter() - started
        return {"seconds": took, "cpu": time.process_time() - used, "received": received}

    def memory(self, way: str) -> dict[str, int]:
        """Bytes allocated in this pod's memory, for arenas and for parity, and how many whole parities that are."""
        whole = len(self._peers[way].parity.whole().get(self._index, ()))
        return {"arenas": _allocated(self._folder / "arena"), "parity": _allocated(self._folder / way), "whole": whole}

    # --- the bound

    def _serve_bare(self) -> None:
        view = self._arenas.require(self._index, Copy(1, 1))
        start = view.file.header.region(view.slot.index)
        area = view.file.buf[start : start + view.slot.data_bytes + view.slot.manifest_bytes]
        for way in ("bare plain", "bare tls"):
            listener = socket.create_server(("", _port(way, self._index)))
            work = (listener, way, view.file.fileno(), start, area)
            threading.Thread(target=self._send_bare, args=work, daemon=True).start()

    def _send_bare(self, listener: socket.socket, way: str, descriptor: int, start: int, area: memoryview) -> None:
        context = tls.server_context(self._folder / "tls")
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if way == "bare tls":
                with suppress(OSError), context.wrap_socket(sock, server_side=True) as secure:
                    for at in range(0, len(area), _RECEIVE):
                        secure.sendall(area[at : at + _RECEIVE])
                continue
            at, end = start, start + len(area)
            while at < end:
                at += os.sendfile(sock.fileno(), descriptor, at, end - at)
            sock.close()

    def bare(self, way: str, source: int, nbytes: int) -> dict[str, float]:
        """Receive another pod's bytes into memory that is there already."""
        if not hasattr(self, "_buffer"):
            self._buffer = memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE))
        target = self._buffer[:nbytes]
        context = tls.client_context(self._folder / "tls")
        started, used = time.perf_counter(), time.process_time()
        sock = socket.create_connection((self._hosts[source], _port(f"bare {way}", source)))
        if way == "tls":
            sock = context.wrap_socket(sock, server_hostname=TLS_NAME)
        with sock:
            _receive_all(sock, target)
        took = time.perf_counter() - started
        return {"seconds": took, "cpu": time.process_time() - used}

    def facts(self) -> dict[str, Any]:
        """Where the other half of the work was done."""
        return {"cpu": time.process_time()}

    def quit(self) -> None:
        """Serve no more."""
        for peers in self._peers.values():
            peers.close()


def _port(way: str, index: int) -> int:
    return _PORTS[way] + 10 * index


def _receive_all(sock: socket.socket, target: memoryview) -> None:
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
    at = 0
    while at < len(target):
        count = sock.recv_into(target[at : at + _RECEIVE], 0, flags)
        if not count:
            raise ConnectionError(f"{len(target) - at} bytes are missing")
        at += count


def _seal(arenas: Arenas, rank: int, world: int, nbytes: int, step: int) -> None:
    """A snapshot of tensors of 4 MiB, sealed as a trainer does."""
    sizes = [min(_TENSOR, nbytes - at) for at in range(0, nbytes, _TENSOR)]
    placed = manifest.lay_out([Entry(f"model.{i}", "uint8", (size,), 0, size) for i, size in enumerate(sizes)])
    blank = SlotManifest(step, 1, rank, world, placed, {})
    file = arenas.reserve(rank, arena.slot_bytes_for(blank.data_bytes, 2 * len(manifest.dump(blank)) + 64 * len(sizes)))
    slot = arena.choose_slot(file.slots(), arena.committed(file.buf), time.monotonic_ns(), kept_steps=arena.kept(file.buf))
    if slot is None:
        raise RuntimeError(f"no slot is free for step {step}")
    data = arena.begin(file.buf, file.header, slot, blank.data_bytes)
    generator = np.random.default_rng(1000 * step + rank)
    for entry in placed:
        area = np.frombuffer(manifest.entry_data(data, entry), np.uint8)
        area[:] = generator.integers(0, 256, entry.nbytes, np.uint8)
    done = dataclasses.replace(blank, entries=tuple(manifest.with_checksums(entry, data) for entry in placed))
    raw = manifest.dump(done)
    arena.seal(file.buf, file.header, slot, step=step, attempt=1, data_bytes=blank.data_bytes, manifest=raw)


def _allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
