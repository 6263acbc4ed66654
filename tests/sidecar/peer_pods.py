"""Pods of a job as their peers see them: real arenas, real peer servers, in one process."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast_core import arena, manifest
from holdfast_core.config import PeersConfig, SidecarConfig
from holdfast_core.manifest import Entry, SlotManifest
from holdfast_core.timeline import Copy
from holdfast_sidecar.arenas import Arenas
from holdfast_sidecar.peers import PeerPlace, Peers
from holdfast_sidecar.peers.parity_file import ParityFile
from holdfast_sidecar.slots import SlotView

from .harness import UID, free_port
from .images import content, entries

SIZE = 5_000_000  # bytes of a rank's state


class PeerPod:
    """One pod: what its sidecar has of arenas and peers."""

    def __init__(self, config: SidecarConfig, attempt: int = 1) -> None:
        self.config, self.attempt = config, attempt
        self.corrupt: list[tuple[int, Copy, str]] = []
        self.open()

    def open(self) -> None:
        """As a sidecar does when it starts."""
        self.arenas = Arenas(self.config)
        self.arenas.adopt()
        self.arenas.fence(self.attempt)
        self.peers = Peers(self.config, self.arenas, lambda: self.attempt, lambda *args: self.corrupt.append(args))
        self.peers.stall = 20.0
        self.peers.start()

    def fence(self, attempt: int) -> None:
        self.attempt = attempt
        self.arenas.fence(attempt)

    @property
    def place(self) -> PeerPlace:
        c = self.config
        return PeerPlace(c.index, c.pod, "127.0.0.1", c.peer_port, c.first_rank, c.processes)

    def seal(self, rank: int, step: int, size: int, frozen: int = 0) -> None:
        """A snapshot of some size, in the slot that a trainer would take. Its first `frozen` bytes are those of every step."""
        file = self.arenas.reserve(rank, arena.slot_bytes_for(size + 8192, 16384))
        index = arena.choose_slot(file.slots(), arena.committed(file.buf), 1 << 62, kept_steps=arena.kept(file.buf))
        assert index is not None
        placed = manifest.lay_out([Entry("base", "bytes", (frozen,), 0, frozen), *entries(size - frozen)])
        blank = SlotManifest(step, self.attempt, rank, self.config.world_size, placed, {"at": step})
        data = arena.begin(file.buf, file.header, index, blank.data_bytes)
        raw = content(rank, -1, frozen) + content(rank, step, size - frozen)
        at = 0
        for entry in placed:
            data[entry.offset : entry.offset + entry.nbytes] = raw[at : at + entry.nbytes]
            at += entry.nbytes
        done = dataclasses.replace(blank, entries=tuple(manifest.with_checksums(e, data) for e in placed))
        raw = manifest.dump(done)
        arena.seal(
            file.buf, file.header, index, step=step, attempt=self.attempt, data_bytes=blank.data_bytes, manifest=raw
        )  # fmt: skip

    def view(self, rank: int, copy: Copy) -> SlotView:
        found = self.arenas.find(rank, copy)
        assert found is not None, f"rank {rank} has no {copy}"
        return found

    def image(self, rank: int, copy: Copy) -> bytes:
        """Everything of a snapshot, manifest and gaps included."""
        view = self.view(rank, copy)
        at = view.file.header.region(view.slot.index)
        return bytes(view.file.buf[at : at + view.slot.data_bytes + view.slot.manifest_bytes])

    def close(self) -> None:
        self.peers.close()


class PeerJob:
    """Some pods, and what they do at the same time."""

    def __init__(self, folder: Path, certificates: Path, pods: int, processes: int = 1, **peers: object) -> None:
        self._folder, self._certificates = folder, certificates
        self._processes, self._settings = processes, PeersConfig(**peers)  # type: ignore[arg-type]
        self._names = itertools.count()
        self.world = pods * processes
        self.attempt = 1
        self.pods = [self._new(index) for index in range(pods)]

    def _new(self, index: int) -> PeerPod:
        name = f"p{index}-{next(self._names)}"
        config = SidecarConfig(
            UID, "gpt", "default", f"gpt-{name}", index, index * self._processes, self._processes, self.world,
            shared_dir=str(self._folder / name), tls_dir=str(self._certificates), peers=self._settings, peer_port=free_port(),
        )  # fmt: skip
        Path(config.shared_dir).mkdir()
        return PeerPod(config, self.attempt)

    @property
    def places(self) -> list[PeerPlace]:
        return [pod.place for pod in self.pods]

    def pod_of(self, rank: int) -> PeerPod:
        return next(pod for pod in self.pods if rank in pod.place.ranks)

    def seal(self, step: int, sizes: Sequence[int], frozen: int = 0) -> Copy:
        """All ranks take a snapshot."""
        for rank, size in enumerate(sizes):
            self.pod_of(rank).seal(rank, step, size, frozen)
        return Copy(step, self.attempt)

    def images(self, copy: Copy) -> list[bytes]:
        return [self.pod_of(rank).image(rank, copy) for rank in range(self.world)]

    def protect(self, copy: Copy, group: tuple[int, ...] = (), m: int = 1, base: Copy | None = None) -> list[int]:
        """All ranks of a group build their parity at the same time; returns what each received."""
        group = group or tuple(range(self.world))

        async def all_at_once() -> list[int]:
            work = (self.pod_of(rank).peers.encode(rank, copy, group, m, self.places, base) for rank in group)
            return list(await asyncio.gather(*work))

        return asyncio.run(all_at_once())

    def lose(self, *indexes: int) -> None:
        """The pods are gone with all they had; new ones come, and the next attempt begins."""
        for index in indexes:
            self.pods[index].close()
        self.attempt += 1
        for index in indexes:
            self.pods[index] = self._new(index)
        for pod in self.pods:
            pod.fence(self.attempt)

    def parity(self, rank: int, copy: Copy) -> ParityFile:
        """What a rank's pod holds for the others."""
        found = self.pod_of(rank).peers.parity.find(rank, copy)
        assert found is not None
        return found

    def rebuild(self, copy: Copy, *ranks: int) -> list[int]:
        """The lost ranks are rebuilt at the same time; returns what each received."""

        async def all_at_once() -> list[int]:
            work = (self.pod_of(rank).peers.rebuild(rank, copy, self.places, self.attempt) for rank in ranks)
            return list(await asyncio.gather(*work))

        return asyncio.run(all_at_once())

    def close(self) -> None:
        for pod in self.pods:
            pod.close()


def protected(make_pods: Callable[..., PeerJob], pods: int = 3, **more: object) -> tuple[PeerJob, Copy]:
    """A job of plain pods with one step in memory everywhere."""
    job = make_pods(pods, **{"encrypted": False, **more})
    return job, job.seal(3, [SIZE] * pods)


def encode(job: PeerJob, rank: int, copy: Copy, group: tuple[int, ...] = (), base: Copy | None = None) -> int:
    """Build one rank's parity; the bytes received."""
    group = group or tuple(range(job.world))
    return asyncio.run(job.pod_of(rank).peers.encode(rank, copy, group, 1, job.places, base))
