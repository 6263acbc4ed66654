"""Follows the log of rank 0 through all its pods, and keeps every step line with the time at which it was written.

The independent witness of a recovery: what the training script printed, stamped by the container runtime, says which steps were
done, done again, and when; the job's status is checked against it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import datetime

from .kube import ApiError, Kube

_STEP = re.compile(r"\bstep[ =](\d+)\b")
_HASH = re.compile(r"\bfinal-weights sha256=([0-9a-f]{64})\b")
_LOST = 4.0  # seconds without a byte after which a stream is opened anew: its node may be gone


@dataclass(frozen=True)
class Sample:
    """A finished step as printed by rank 0. `time` in seconds since the epoch."""

    time: float
    step: int
    pod: str


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    time: float
    text: str
    pod: str


class StepLog:
    """Lines and steps of pod `index` of a job, collected in the background until closed.

    `selector` and `container`: of the pods of something that is no TrainingJob.
    """

    def __init__(
        self, kube: Kube, namespace: str, job: str, index: int = 0, *, selector: str = "", container: str = "trainer"
    ) -> None:
        self._kube, self._namespace, self._container = kube, namespace, container
        self._selector = selector or f"holdfast.dev/job={job},holdfast.dev/index={index}"
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._followers: dict[str, threading.Thread] = {}
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="step log")
        self._watcher.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._watcher.join(5.0)
        for thread in list(self._followers.values()):
            thread.join(0.5)

    @property
    def lines(self) -> list[Line]:
        """Everything so far."""
        with self._lock:
            return list(self._lines)

    @property
    def samples(self) -> list[Sample]:
        """Every step line so far, in order of time."""
        with self._lock:
            return sorted(self._samples, key=lambda s: s.time)

    @property
    def step(self) -> int:
        """The last step printed, -1 before the first."""
        found = self.samples
        return found[-1].step if found else -1

    @property
    def weights(self) -> str | None:
        """The hash of the final weights, once printed."""
        for line in reversed(self.lines):
            match = _HASH.search(line.text)
            if match:
                return match[1]
        return None

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                pods = self._kube.list("Pod", self._namespace, self._selector)
            except ApiError:
                pods = []
            for pod in pods:
                self._ensure(pod["metadata"]["name"], pod["metadata"]["uid"])
            self._stop.wait(0.5)

    def _ensure(self, pod: str, uid: str) -> None:
        thread = self._followers.get(uid)
        if thread is None:
            thread = threading.Thread(target=self._follow, args=(pod, uid), daemon=True, name=f"log of {pod}")
            self._followers[uid] = thread
            thread.start()

    def _follow(self, pod: str, uid: str) -> None:
        """Until the pod is gone for good: a stream that ends may be a restart, a cut, or a slow start."""
        last = ""
        while not self._stop.is_set():
            try:
                for text in self._kube.follow(self._namespace, pod, self._container, last, _LOST):
                    last = self._take(pod, text, last)
                    if self._stop.is_set():
                        return
                if self._gone(pod, uid):
                    return
            except ApiError as error:
                if error.status == 404:
                    return
            self._stop.wait(0.3)

    def _gone(self, pod: str, uid: str) -> bool:
        found = self._kube.find("Pod", self._namespace, pod)
        return found is None or found["metadata"]["uid"] != uid or found["status"].get("phase") in ("Succeeded", "Failed")

    def _take(self, pod: str, text: str, last: str) -> str:
        """Keep a line unless a reconnect repeats it; its stamp."""
        stamp, _, rest = text.partition(" ")
        if not stamp or stamp <= last:
            return last
        try:
            at = seconds(stamp)
        except ValueError:
            return last
        match = _STEP.search(rest)
        with self._lock:
            self._lines.append(Line(at, rest, pod))
            if match:
                self._samples.append(Sample(at, int(match[1]), pod))
        return stamp


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time (any number of fractional digits)."""
    head, dot, tail = stamp.partition(".")
    digits = re.match(r"\d*", tail)
    fraction = float(f"0.{digits[0]}") if dot and digits and digits[0] else 0.0
    return datetime.fromisoformat(head.rstrip("Z") + "+00:00").timestamp() + fraction
