"""From a TrainingJob's spec to what the planner and the pod builder need. What the CRD can't refuse is refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from holdfast_core import config
from holdfast_core.config import PeersConfig, StoreConfig
from holdfast_core.interval import Auto, Rule, Seconds, Steps
from holdfast_core.planner import Job, Policy
from kubernetes.utils.quantity import parse_quantity

from . import names, outdated

_DURATION = re.compile(r"(\d+)(s|m|h)")
_UNIT = {"s": 1, "m": 60, "h": 3600}
_GPUS = ("nvidia.com/gpu", "amd.com/gpu")


class SpecError(ValueError):
    """The spec can't be carried out; `field` is the path of what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True)
class Store:
    """A durable level as the user wrote it; either `claim` or `url`."""

    name: str
    claim: str = ""
    sub_path: str = ""
    url: str = ""
    secret: str = ""
    every_seconds: float | None = None
    every_steps: int | None = None
    keep: int = 3


@dataclass(frozen=True)
class JobSpec:
    """A parsed TrainingJob. `slot_bytes` 0 means auto."""

    job: Job
    template: Mapping[str, Any]
    slots: int = 3
    slot_bytes: int = 0
    stores: tuple[Store, ...] = ()
    generation: int = 0
    fingerprint: str = ""


def parse(body: Mapping[str, Any]) -> JobSpec:
    """Raises SpecError."""
    meta, spec = body["metadata"], _mapping(body, "spec", "")
    workers = _mapping(spec, "workers", "spec.")
    template = _mapping(workers, "template", "spec.workers.")
    checkpoint = spec.get("checkpoint", {})
    memory = checkpoint.get("memory", {})
    stores = tuple(_store(s) for s in checkpoint.get("stores", []))
    job = Job(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        replicas=int(workers.get("replicas", 1)),
        processes=_processes(workers, template),
        stores=tuple(s.name for s in stores),
        policy=_policy(spec),
        every=_every(checkpoint.get("every") or {"steps": 1}),
        peers=_peers(checkpoint.get("peers") or {}),
        topology=str((checkpoint.get("peers") or {}).get("topologyKey", Job.topology)),
        spares=int(workers.get("spares", 0)),
    )
    size = memory.get("size", "auto")
    slot_bytes = 0 if size == "auto" else _bytes(size, "spec.checkpoint.memory.size")
    slots, generation = int(memory.get("slots", 3)), int(meta.get("generation", 0))
    return JobSpec(job, template, slots, slot_bytes, stores, generation, outdated.fingerprint(spec))


def store_config(store: Store, namespace: str, job: str) -> StoreConfig:
    """What the sidecar is told: the job's own folder in the store."""
    base = store.url if store.url else "file://" + "/".join(filter(None, (mount_path(store), store.sub_path.strip("/"))))
    return StoreConfig(
        name=store.name,
        url=f"{base.rstrip('/')}/{namespace}/{job}",
        every_seconds=store.every_seconds,
        every_steps=store.every_steps,
        keep=store.keep,
        env_prefix=names.env_prefix(store.name) if store.secret else "",
    )


def mount_path(store: Store) -> str:
    """Where a claim is mounted in the sidecar."""
    return f"{config.STORES_DIR}/{store.name}"


def trainer(template: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container that runs the script; raises SpecError."""
    containers = template.get("spec", {}).get("containers") or []
    found = next((c for c in containers if c.get("name") == names.TRAINER), None)
    if found is None:
        raise SpecError("spec.workers.template.spec.containers", f"no container is named {names.TRAINER!r}")
    if not found.get("command"):
        raise SpecError("spec.workers.template.spec.containers", "the container 'trainer' gives no command")
    return dict(found)


def _processes(workers: Mapping[str, Any], template: Mapping[str, Any]) -> int:
    container = trainer(template)
    wanted = workers.get("processesPerPod", "auto")
    if wanted != "auto":
        return int(wanted)
    limits = (container.get("resources") or {}).get("limits") or {}
    gpus = sum(_bytes(limits[name], f"limits[{name}]") for name in _GPUS if name in limits)
    return max(1, gpus)


def _policy(spec: Mapping[str, Any]) -> Policy:
    run, failure, plain = spec.get("runPolicy", {}), spec.get("failurePolicy", {}), Policy()
    limits, nodes = failure.get("restarts", {}), failure.get("nodes", {})
    return Policy(
        restart_limit=int(limits.get("limit", plain.restart_limit)),
        restart_window=_seconds(limits.get("window", "1h"), "spec.failurePolicy.restarts.window"),
        no_progress_limit=int(limits.get("noProgressLimit", plain.no_progress_limit)),
        startup_deadline=float(run.get("startupDeadlineSeconds", plain.startup_deadline)),
        hang_deadline=float(run.get("hangDeadlineSeconds", plain.hang_deadline)),
        node_limit=int(nodes.get("limit", plain.node_limit)),
        node_window=_seconds(nodes.get("window", "1h"), "spec.failurePolicy.nodes.window"),
        force_delete=bool(failure.get("forceDeletePods", plain.force_delete)),
    )


def _peers(peers: Mapping[str, Any]) -> PeersConfig:
    """On unless it is switched off; the API server has checked the numbers."""
    field, plain = "spec.checkpoint.peers", PeersConfig()
    size, parity = int(peers.get("groupSize", plain.group_size)), int(peers.get("parity", plain.parity))
    if parity >= size:
        raise SpecError(f"{field}.parity", f"{parity} is not below groupSize, {size}")
    bandwidth = _bytes(peers["bandwidth"], f"{field}.bandwidth") if "bandwidth" in peers else 0
    return PeersConfig(size, parity, bandwidth, peers.get("encryption", "mtls") != "none")


def _every(every: Mapping[str, Any]) -> Rule:
    """The rule for the interval of snapshots; the API server has checked the numbers."""
    field = "spec.checkpoint.every"
    given = [name for name in ("steps", "seconds", "auto") if every.get(name) is not None]
    if len(given) != 1:
        raise SpecError(field, f"must have exactly one of steps, seconds and auto, not {' and '.join(given) or 'none'}")
    if "steps" in given:
        return Steps(int(every["steps"]))
    if "seconds" in given:
        return Seconds(float(every["seconds"]))
    auto, plain = every["auto"], Auto()
    low, high = int(auto.get("minSteps", plain.min_steps)), auto.get("maxSteps")
    if high is not None and int(high) < low:
        raise SpecError(f"{field}.auto.maxSteps", f"{high} is below minSteps, {low}")
    return Auto(low, None if high is None else int(high), float(auto.get("maxSeconds", plain.max_seconds)))


def _store(store: Mapping[str, Any]) -> Store:
    claim, every = store.get("persistentVolumeClaim") or {}, store.get("every") or {"seconds": 60}
    sub_path = str(claim.get("subPath", ""))
    if ".." in sub_path.split("/"):
        raise SpecError(f"spec.checkpoint.stores[{store['name']}].persistentVolumeClaim.subPath", "'..' is not allowed")
    return Store(
        name=store["name"],
        claim=claim.get("claimName", ""),
        sub_path=sub_path,
        url=store.get("url", ""),
        secret=(store.get("secretRef") or {}).get("name", ""),
        every_seconds=float(every["seconds"]) if "seconds" in every else None,
        every_steps=int(every["steps"]) if "steps" in every else None,
        keep=int(store.get("keep", 3)),
    )


def _seconds(text: str, field: str) -> float:
    parts = _DURATION.findall(text)
    if "".join(f"{n}{u}" for n, u in parts) != text or not parts:
        raise SpecError(field, f"{text!r} is not a duration such as 90s, 30m or 1h30m")
    return float(sum(int(n) * _UNIT[u] for n, u in parts))


def _bytes(quantity: Any, field: str) -> int:
    try:
        value: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise SpecError(field, f"{quantity!r} is not a quantity: {error}") from error
    if value <= 0:
        raise SpecError(field, f"{quantity!r} is not above 0")
    return int(value)


def _mapping(parent: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise SpecError(f"{path}{key}", "is missing")
    return value
