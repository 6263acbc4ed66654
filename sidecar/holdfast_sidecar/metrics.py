"""Prometheus metrics of a sidecar; docs/metrics.md explains each. Every sample carries the job and its namespace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from holdfast_core.local import Sealed
from holdfast_core.messages import MEMORY, PEERS, AgentState
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]
_JOB = ("namespace", "job_name")
SKIP_REASONS = ("no_slot", "fenced", "too_small", "agent", "error", "other")
_STALL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MODE = re.compile(r"(sync|lazy)\b(?:\D*(\d{1,3}) threads?\b)?")
_MOST_THREADS = 64
_COMMIT = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class _Source(Protocol):
    def state(self) -> AgentState: ...


class Metrics:
    """Counters that the parts of the sidecar raise, and gauges read from its state when scraped."""

    def __init__(self, namespace: str, job: str) -> None:
        self.registry = CollectorRegistry()
        self._names = (namespace, job)
        self.snapshots = self._counter("holdfast_snapshots", "Snapshots sealed in memory", "rank")
        self.skipped = self._counter("holdfast_snapshots_skipped", "Steps without a snapshot", "rank", "reason")
        self.captured = self._counter("holdfast_captured_bytes", "Bytes captured into memory")
        self.copied = self._counter("holdfast_copied_bytes", "Bytes of captured state that were copied anew")
        self.fence_waits = self._counter("holdfast_fence_waits", "Snapshots whose copy held up a training step", "rank")
        self.fence_seconds = self._counter(
            "holdfast_fence_wait_seconds", "What these copies made the training loop wait", "rank"
        )
        self.uploaded = self._counter("holdfast_uploaded_bytes", "Bytes written to a durable level", "level")
        self.restored = self._counter("holdfast_restored_bytes", "Bytes made available for a restore", "level")
        self.errors = self._counter("holdfast_store_errors", "Failed accesses to a durable level", "level")
        self.stall = self._histogram("holdfast_snapshot_stall_seconds", "What a snapshot made the training loop wait", _STALL)
        self.capture = self._histogram("holdfast_capture_seconds", "Copy and checksum of a snapshot, wherever they ran", _STALL)
        self.received = self._counter("holdfast_parity_received_bytes", "Bytes received from peers to make parity for them")
        self.replications = self._counter("holdfast_replications", "Parity of a rank's step, made or not", "result")
        self.replication = self._histogram(
            "holdfast_replication_seconds", "From the order to make parity of a step until it was whole", _COMMIT
        )
        self.commit = self._histogram(
            "holdfast_store_commit_seconds", "From the order to upload until committed", _COMMIT, "level"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_JOB, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(name, text, (*_JOB, *labels), registry=self.registry, buckets=tuple(buckets))

    def count(self, counter: Counter, *labels: str, by: float = 1.0) -> None:
        """Raise a counter of this job."""
        counter.labels(*self._names, *labels).inc(by)

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        """Add to a histogram of this job."""
        histogram.labels(*self._names, *labels).observe(value)

    def watch(self, source: _Source, levels: Iterable[str], ranks: Iterable[int]) -> None:
        """Export gauges of this state. What has not happened yet exists as 0, so that rates have a start."""
        self.registry.register(Gauges(source, self._names))
        for level in levels:
            for counter in (self.uploaded, self.restored, self.errors):
                self.count(counter, level, by=0.0)
            self.commit.labels(*self._names, level)
        self.know_ranks(ranks)
        for level in (MEMORY, PEERS):
            self.count(self.restored, level, by=0.0)
        self.count(self.captured, by=0.0)
        self.count(self.copied, by=0.0)
        self.count(self.received, by=0.0)
        for result in ("ok", "failed"):
            self.count(self.replications, result, by=0.0)
        self.stall.labels(*self._names)
        self.capture.labels(*self._names)
        self.replication.labels(*self._names)

    def know_ranks(self, ranks: Iterable[int]) -> None:
        """Ranks of this pod, from now on."""
        for rank in ranks:
            self.count(self.snapshots, str(rank), by=0.0)
            self.count(self.skipped, str(rank), "no_slot", by=0.0)
            self.count(self.fence_waits, str(rank), by=0.0)
            self.count(self.fence_seconds, str(rank), by=0.0)

    def replicated(self, seconds: float, received: int, *, failed: bool) -> None:
        """A rank's parity of a step was made, or could not be, that long after the order."""
        self.count(self.received, by=received)
        self.count(self.replications, "failed" if failed else "ok")
        if not failed:
            self.observe(self.replication, seconds)

    def snapshot(self, message: Sealed, data_bytes: int) -> None:
        """A snapshot was sealed, of so many bytes; what its trainer does not tell is counted as copied."""
        rank = str(message.rank)
        self.count(self.snapshots, rank)
        self.count(self.captured, by=data_bytes)
        self.count(self.copied, by=data_bytes if message.copied < 0 else min(message.copied, data_bytes))
        self.observe(self.stall, message.stall_seconds)
        self.observe(self.capture, message.capture_seconds)
        self.count(self.fence_waits, rank, by=message.fence_seconds > 0)
        self.count(self.fence_seconds, rank, by=message.fence_seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class Gauges(Collector):
    """Gauges computed from the state at the time of the scrape."""

    def __init__(self, source: _Source | None = None, names: tuple[str, str] = ("", "")) -> None:
        self._source, self._names = source, names

    def describe(self) -> Iterable[Metric]:
        """Names only; also for tools that list what there is."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        families = _families()
        if self._source is not None:
            self._fill(families, self._source.state())
        yield from families.values()

    def _fill(self, families: dict[str, GaugeMetricFamily], state: AgentState) -> None:
        def add(name: str, value: float, *labels: str) -> None:
            families[name].add_metric((*self._names, *labels), value)

        for rank in state.ranks:
            add("rank_step", rank.step, str(rank.rank))
        if state.committed:
            add("level_step", state.committed.step, MEMORY)
        if state.protected:
            add("level_step", state.protected.step, PEERS)
        for store in state.stores:
            add("store_up", 0.0 if store.error else 1.0, store.name)
            if store.committed:
                add("level_step", store.committed.step, store.name)
        add("arena_bytes", state.arena_bytes)
        add("parity_bytes", state.parity_bytes)
        add("peers_silent", len(state.silent))
        add("agent_attempt", state.attempt)
        add("snapshot_interval_steps", max(1, state.every or 0))
        add("capture_mode", 1, *capture_mode(state.capture))


def _families() -> dict[str, GaugeMetricFamily]:
    table: dict[str, tuple[str, tuple[str, ...]]] = {
        "rank_step": ("Last step that the rank has finished", ("rank",)),
        "level_step": ("Newest step committed at the level", ("level",)),
        "store_up": ("Whether the last access to the durable level worked", ("level",)),
        "arena_bytes": ("Shared memory taken by this pod's arenas", ()),
        "parity_bytes": ("Shared memory taken by parity that this pod holds for its peers", ()),
        "peers_silent": ("Watched peers that do not answer this pod", ()),
        "agent_attempt": ("Attempt that the sidecar is at", ()),
        "snapshot_interval_steps": ("Steps from one snapshot to the next", ()),
        "capture_mode": ("How the pod's first rank captures; always 1", ("mode", "threads")),
    }
    return {k: GaugeMetricFamily(f"holdfast_{k}", text, labels=(*_JOB, *labels)) for k, (text, labels) in table.items()}


def capture_mode(text: str) -> tuple[str, str]:
    """Mode and threads out of the trainer's sentence ("lazy, 2 threads: ..."), a bounded number of values."""
    found = _MODE.match(text)
    if found is None:
        return ("other" if text else "none"), ""
    return found[1], str(min(int(found[2]), _MOST_THREADS)) if found[2] else ""
