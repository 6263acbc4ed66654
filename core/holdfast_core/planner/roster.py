"""Which of the pods that are there count, and as what: as a worker's pod, or as a spare that waits. Pure.

A spare keeps its name when it takes an index. Which one it took is written in the status alone, so that no pod has to be
changed before it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .types import Job, PodView, Spare, Worker


class Roster:
    """Of a status' workers and spares."""

    def __init__(self, workers: Sequence[Worker], spares: Sequence[Spare]) -> None:
        self._by_index = {w.index: w for w in workers}
        self._by_spare = {w.spare: w for w in workers if w.spare}
        self._waiting = {s.number for s in spares}

    def as_worker(self, pod: PodView) -> PodView | None:
        """The pod with the index and incarnation that it has now, or None if it is not (or no longer) a worker's."""
        if pod.spare:
            taker = self._by_spare.get(pod.spare)
            return replace(pod, index=taker.index, incarnation=taker.incarnation) if taker else None
        worker = self._by_index.get(pod.index)
        return pod if worker and (worker.incarnation, worker.spare) == (pod.incarnation, 0) else None

    def waits(self, pod: PodView) -> bool:
        """Whether a pod is a spare without a rank."""
        return pod.spare in self._waiting

    def is_stale(self, pod: PodView) -> bool:
        """Whether a pod has been replaced, or nobody wants it (any more)."""
        if pod.spare:
            return not self.waits(pod) and pod.spare not in self._by_spare
        worker = self._by_index.get(pod.index)
        return worker is None or pod.incarnation < worker.incarnation + bool(worker.spare)


def name(job: Job, worker: Worker) -> str:
    """Of the pod that is a worker's."""
    return job.spare_name(worker.spare) if worker.spare else job.pod_name(worker.index, worker.incarnation)
