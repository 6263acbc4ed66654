"""Prometheus metrics of the operator; docs/metrics.md has the table. Gauges of a job vanish with the job."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast_core.planner import Recovery, Status
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_JOB = ("namespace", "job_name")
_RECOVERY = (*_JOB, "cause", "level")
_SILENCE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 13, 20, 30, 60, 120)
_SECONDS = (0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600, 1800)


@dataclass(frozen=True)
class Sample:
    """A job as of its last pass. `connected` counts sidecars heard in the last seconds, `faults` those that it could take now:
    None if that is not asked of it (off, a single pod, not training)."""

    namespace: str
    name: str
    phase: str
    attempt: int
    step: int
    goodput: float | None
    connected: int
    faults: int | None = None
    avoided: int = 0
    spares: int = 0


def sample(namespace: str, name: str, planner: Status, connected: int) -> Sample:
    """The values of a job."""
    trains = planner.first_step_at is not None and not planner.terminal
    asked = planner.protection if trains and len(planner.workers) > 1 else None
    return Sample(
        namespace, name, planner.phase, planner.attempt, planner.step, planner.goodput, connected,
        asked.faults if asked else None, len(planner.avoided), planner.spares_ready,
    )  # fmt: skip


class _Jobs(Collector):
    """Gauges made at scrape time from the last sample of each job."""

    def __init__(self) -> None:
        self.samples: dict[str, Sample] = {}

    def collect(self) -> Iterator[Metric]:
        samples = list(self.samples.values())
        phases = GaugeMetricFamily("holdfast_jobs", "Jobs by phase", labels=["phase"])
        for phase, count in sorted(Tally(s.phase for s in samples).items()):
            phases.add_metric([phase], count)
        yield phases
        yield _gauge("holdfast_job_attempt", "Number of the current attempt", [(s, s.attempt) for s in samples])
        yield _gauge("holdfast_job_step", "Last step that all ranks finished", [(s, s.step) for s in samples if s.step >= 0])
        ratios = [(s, s.goodput) for s in samples if s.goodput is not None]
        yield _gauge("holdfast_job_goodput_ratio", "Share of the time since the first step that was not lost", ratios)
        protected = [(s, s.faults) for s in samples if s.faults is not None]
        yield _gauge("holdfast_job_protected_faults", "Nodes that may be lost at once without losing a step", protected)
        yield _gauge("holdfast_job_avoided_nodes", "Nodes that new pods are kept from", [(s, s.avoided) for s in samples])
        yield _gauge("holdfast_job_spares_ready", "Spares that could take a rank now", [(s, s.spares) for s in samples])
        yield _gauge("holdfast_sidecar_connected", "Sidecars heard in the last 3 seconds", [(s, s.connected) for s in samples])


def _gauge(name: str, text: str, values: list[tuple[Sample, int]] | list[tuple[Sample, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(_JOB))
    for sample, value in values:
        family.add_metric([sample.namespace, sample.name], value)
    return family


class Metrics:
    """All metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = _Jobs()
        self.registry.register(self._jobs)
        self._recoveries = Counter("holdfast_recoveries", "Finished recoveries", _RECOVERY, registry=self.registry)
        self._seconds = Histogram(
            "holdfast_recovery_seconds",
            "Seconds from a fault to the next finished step",
            _RECOVERY,
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._lost = Counter("holdfast_lost_steps", "Steps that had to be repeated", _RECOVERY, registry=self.registry)
        self._detection = Histogram(
            "holdfast_detection_seconds",
            "Silence of a pod when it was judged lost with its node",
            (*_JOB, "cause"),
            registry=self.registry,
            buckets=_SILENCE,
        )
        self.reconcile_seconds = Histogram("holdfast_reconcile_seconds", "Seconds of a pass", registry=self.registry)
        self.reconcile_errors = Counter("holdfast_reconcile_errors", "Passes that failed", registry=self.registry)

    def sample(self, uid: str, sample: Sample) -> None:
        """Remember a job's present values."""
        self._jobs.samples[uid] = sample

    def forget(self, uid: str) -> None:
        """A job is gone."""
        self._jobs.samples.pop(uid, None)

    def planned(self, namespace: str, name: str, before: Status, after: Status) -> None:
        """Count the nodes that this pass found dead, and a recovery that it finished."""
        for failure in after.node_failures:
            if failure not in before.node_failures:
                self._detection.labels(namespace, name, failure.reason).observe(failure.silence)
        if after.recoveries > before.recoveries and after.last_recovery is not None:
            self._recovered(namespace, name, after.last_recovery)

    def _recovered(self, namespace: str, name: str, recovery: Recovery) -> None:
        labels = (namespace, name, recovery.cause, recovery.level)
        self._recoveries.labels(*labels).inc()
        self._seconds.labels(*labels).observe(recovery.seconds)
        self._lost.labels(*labels).inc(recovery.lost_steps)
