"""A training job on the cluster: its manifest, its status, its pods, and waits on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .kube import GROUP, Kube, Object
from .steplog import StepLog, seconds
from .waiting import wait_for

TORCH = "/opt/torch"  # where a trainer finds torch if its image has none


@dataclass(frozen=True)
class Spec:
    """What a job of the demo or of a test needs to say. `stores` are entries of spec.checkpoint.stores.

    `peers` is spec.checkpoint.peers, None what users get who say nothing; `memory` is spec.checkpoint.memory,
    `nodes` spec.failurePolicy.nodes.
    `torch_site`: a folder of the node with torch in it, mounted read-only. `files`: a ConfigMap mounted at /script.
    """

    name: str
    namespace: str
    image: str
    command: tuple[str, ...]
    replicas: int = 3
    stores: tuple[Object, ...] = ()
    torch_site: str = ""
    files: str = ""
    env: dict[str, str] = field(default_factory=dict)
    run_policy: Object = field(default_factory=dict)
    restarts: Object = field(default_factory=dict)
    peers: Object | None = None
    memory: Object | None = None
    spares: int = 0
    nodes: Object | None = None
    grace: int | None = None

    def manifest(self) -> Object:
        """The TrainingJob."""
        spec: Object = {
            "workers": {"replicas": self.replicas, "template": {"spec": self._pod()}},
            "checkpoint": {"stores": list(self.stores)},
        }
        if self.spares:
            spec["workers"]["spares"] = self.spares
        for name, part in (("peers", self.peers), ("memory", self.memory)):
            if part is not None:
                spec["checkpoint"][name] = part
        if self.run_policy:
            spec["runPolicy"] = self.run_policy
        policy = {"restarts": self.restarts or None, "nodes": self.nodes}
        if any(policy.values()):
            spec["failurePolicy"] = {k: v for k, v in policy.items() if v}
        meta = {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": GROUP, "kind": "TrainingJob", "metadata": meta, "spec": spec}

    def _pod(self) -> Object:
        mounts, volumes = self._volumes()
        env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **self.env}
        if self.torch_site:
            env["PYTHONPATH"] = TORCH
        trainer: Object = {
            "name": "trainer",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(self.command),
            "env": [{"name": k, "value": v} for k, v in env.items()],
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "volumeMounts": mounts,
        }
        pod: Object = {"containers": [trainer], "volumes": volumes}
        if self.grace is not None:
            pod["terminationGracePeriodSeconds"] = self.grace
        return pod

    def _volumes(self) -> tuple[list[Object], list[Object]]:
        mounts: list[Object] = []
        volumes: list[Object] = []
        if self.torch_site:
            mounts.append({"name": "torch", "mountPath": TORCH, "readOnly": True})
            volumes.append({"name": "torch", "hostPath": {"path": self.torch_site, "type": "Directory"}})
        if self.files:
            mounts.append({"name": "script", "mountPath": "/script", "readOnly": True})
            volumes.append({"name": "script", "configMap": {"name": self.files}})
        return mounts, volumes


def claim_store(claim: str, every: Object, keep: int = 3, name: str = "pvc") -> Object:
    """A store on a claim."""
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}, "every": every, "keep": keep}


def s3_store(url: str, secret: str, every: Object, keep: int = 3, name: str = "s3") -> Object:
    """A store in a bucket."""
    return {"name": name, "url": url, "secretRef": {"name": secret}, "every": every, "keep": keep}


class Job:
    """A TrainingJob by name. Reading it costs a call each time: nothing is remembered but the log of rank 0."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self._log: StepLog | None = None

    @property
    def log(self) -> StepLog:
        """Rank 0's log, followed from the first time that it is asked for."""
        if self._log is None:
            self._log = StepLog(self.kube, self.namespace, self.name)
        return self._log

    def close(self) -> None:
        """Stop following the log."""
        if self._log is not None:
            self._log.close()

    def apply(self, spec: Spec) -> None:
        """Create or update it."""
        self.kube.apply(spec.manifest())

    def delete(self) -> None:
        """Delete it; its pods go by garbage collection."""
        self.kube.delete("TrainingJob", self.namespace, self.name)

    @property
    def resource(self) -> Object | None:
        """The TrainingJob as it is, or None."""
        return self.kube.find("TrainingJob", self.namespace, self.name)

    @property
    def status(self) -> Object:
        """Its status ({} while it has none)."""
        found = self.resource
        return dict(found.get("status") or {}) if found else {}

    @property
    def attempt(self) -> int:
        """The current attempt, 0 before the first."""
        return int(self.status.get("attempt", 0))

    def pods(self) -> list[Object]:
        """All its pods, replaced ones included."""
        return self.kube.list("Pod", self.namespace, f"holdfast.dev/job={self.name}")

    def pod(self, index: int) -> Object | None:
        """The newest pod of an index that is not being deleted."""
        found = [p for p in self.pods() if _label(p, "index") == index and "deletionTimestamp" not in p["metadata"]]
        return max(found, key=lambda p: _label(p, "incarnation"), default=None)

    def need_pod(self, index: int) -> Object:
        """The same, waited for."""
        found = wait_for(lambda: self.pod(index), 30, f"pod {index} of {self.name}")
        assert found is not None
        return found

    def events(self) -> list[Object]:
        """Events on the job."""
        fields = f"involvedObject.kind=TrainingJob,involvedObject.name={self.name}"
        return self.kube.list("Event", self.namespace, fields=fields)

    def condition(self, kind: str) -> Object | None:
        """A condition by type."""
        return next((c for c in self.status.get("conditions", ()) if c["type"] == kind), None)

    def checkpoint(self, level: str) -> int:
        """Newest step that the status says is committed at a level, -1 if none."""
        return int(self.status.get("checkpoints", {}).get(level, {}).get("step", -1))

    def brief(self) -> str:
        """The status in a line, for error messages."""
        status = self.status
        keys = ("phase", "stage", "attempt", "step", "saved", "restarts", "lastRecovery", "message")
        conditions = [f"{c['type']}={c['status']} {c['reason']}" for c in status.get("conditions", ())]
        return ", ".join([*(f"{k}={status.get(k)}" for k in keys if k in status), *conditions])

    def wait(self, probe: Callable[[Object], Any], limit: float, what: str, every: float = 0.25) -> Object:
        """The status once `probe` of it is true. Raises WaitTimeout with the status in a line."""
        kept: dict[str, Object] = {}

        def look() -> bool:
            kept["status"] = self.status
            return bool(probe(kept["status"]))

        wait_for(look, limit, f"{self.name}: {what}", every=every, seen=self.brief)
        return kept["status"]

    def wait_phase(self, *phases: str, limit: float) -> Object:
        """Wait until its phase is one of these."""
        return self.wait(lambda s: s.get("phase") in phases, limit, f"phase {' or '.join(phases)}")

    def wait_condition(self, kind: str, value: bool, limit: float, text: str = "") -> Object:
        """Wait until a condition has this value (and `text` in its reason or message)."""
        what = f"condition {kind}={value} {text}".rstrip()
        status = self.wait(partial(_holds, kind, str(value), text), limit, what)
        found: Object = next(c for c in status["conditions"] if c["type"] == kind)  # a second read may show another one
        return found

    def wait_steps(self, count: int, limit: float, since: float) -> None:
        """Wait until rank 0 has finished `count` steps after the time `since`."""
        log = self.log

        def enough() -> bool:
            return sum(s.time > since for s in log.samples) >= count

        wait_for(enough, limit, f"{self.name}: {count} new steps", every=0.05, seen=lambda: f"step {log.step}; {self.brief()}")


def _holds(kind: str, value: str, text: str, status: Object) -> bool:
    for found in status.get("conditions", ()):
        if found["type"] == kind:
            return bool(found["status"] == value and text in f"{found.get('reason', '')} {found.get('message', '')}")
    return False


def _label(pod: Object, name: str) -> int:
    return int(pod["metadata"]["labels"].get(f"holdfast.dev/{name}", -1))


def recovered_at(status: Object) -> float:
    """Time of the last recovery's first step, in seconds since the epoch; 0 if there was none."""
    last = status.get("lastRecovery") or {}
    return seconds(last["time"]) if last.get("time") else 0.0
