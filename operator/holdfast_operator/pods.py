"""A worker pod: the user's template with the launcher before the command and the checkpoint sidecar beside it. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_core import config

from . import names, sidecar
from .settings import Settings
from .spec import JobSpec

_PYTHON = re.compile(r"^(.*/)?python[0-9.]*$")
_LIB = f"{config.SHARED_DIR}/{config.LIB_DIR}"
_USER_PYTHONPATH = "HOLDFAST_USER_PYTHONPATH"
HOSTNAME = "kubernetes.io/hostname"
_DEAD_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_SPREAD, _STRONG = 10, 100  # weights of preferences: several live pods on a node are better than one on a node that may be dead
# The scheduler spreads what is behind a Service on its own, away from nodes where pods live, unless it is told how; this counts
# nobody.
_NO_SPREAD = [
    {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {names.LABEL_UID: ""}},
    }
]


@dataclass(frozen=True)
class Where:
    """Names of nodes: those that a pod must not go to, and those that it should rather not; and who is on these: labels by
    which each pod of the job there is selected."""

    never: tuple[str, ...] = ()
    rather_not: tuple[str, ...] = ()
    lost: tuple[Mapping[str, str], ...] = ()


ANYWHERE = Where()


def build(
    spec: JobSpec, index: int, incarnation: int, slot_bytes: int, settings: Settings, where: Where = ANYWHERE
) -> dict[str, Any]:
    """The pod of an index and incarnation. `slot_bytes` sizes its arena, 0 if nobody knows yet."""
    own = {names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: str(incarnation)}
    return _pod(spec, spec.job.pod_name(index, incarnation), own, sidecar.Arena(index, slot_bytes), settings, where)


def build_spare(spec: JobSpec, number: int, slot_bytes: int, settings: Settings, where: Where = ANYWHERE) -> dict[str, Any]:
    """A pod without a rank. It gets the label of an index when it takes one."""
    own = {names.LABEL_SPARE: str(number), names.LABEL_INCARNATION: "1"}
    return _pod(spec, spec.job.spare_name(number), own, sidecar.Arena(-1, slot_bytes), settings, where)


def _pod(
    spec: JobSpec, name: str, own: Mapping[str, str], arena: sidecar.Arena, settings: Settings, where: Where
) -> dict[str, Any]:
    template = copy.deepcopy(dict(spec.template))
    pod = template.get("spec") or {}
    pod |= {
        "restartPolicy": "OnFailure",
        "hostname": name[:63].rstrip("-"),
        "subdomain": spec.job.name,
        "volumes": [*(pod.get("volumes") or []), *sidecar.volumes(spec)],
        "initContainers": [
            sidecar.container(spec, name, arena, settings),
            *(pod.get("initContainers") or []),
        ],
        "containers": [_container(c, spec) for c in pod.get("containers") or []],
        "securityContext": _security(pod.get("securityContext") or {}),
        "affinity": _affinity(pod.get("affinity") or {}, spec, where),
        "tolerations": _tolerations(pod.get("tolerations") or []),
    }
    if where.lost:
        pod.setdefault("topologySpreadConstraints", copy.deepcopy(_NO_SPREAD))
    pod.setdefault("automountServiceAccountToken", False)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(template.get("metadata") or {}, spec, name, own),
        "spec": pod,
    }


def owner(spec: JobSpec) -> dict[str, Any]:
    """Reference to the job: what it owns goes with it, whether the operator runs or not."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": spec.job.name,
        "uid": spec.job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _metadata(template: dict[str, Any], spec: JobSpec, name: str, own: Mapping[str, str]) -> dict[str, Any]:
    scrape = {"prometheus.io/scrape": "true", "prometheus.io/port": str(config.METRICS_PORT)}
    return {
        "name": name,
        "namespace": spec.job.namespace,
        "labels": {**(template.get("labels") or {}), **names.labels(spec.job.name, spec.job.uid), **own},
        "annotations": {**scrape, **(template.get("annotations") or {}), names.ANNOTATION_SPEC: spec.fingerprint},
        "ownerReferences": [owner(spec)],
    }


def _container(container: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    if container.get("name") != names.TRAINER:
        return container
    command = [*container["command"], *(container.pop("args", None) or [])]
    python = command[0] if _PYTHON.match(command[0]) else "python3"
    mount = {"name": names.SHARED_VOLUME, "mountPath": config.SHARED_DIR}
    return container | {
        "command": [python, "-m", "holdfast.launcher", "--", *command],
        "env": _environment(container.get("env") or [], spec),
        "volumeMounts": [*(container.get("volumeMounts") or []), mount],
    }


def _environment(env: list[dict[str, Any]], spec: JobSpec) -> list[dict[str, Any]]:
    ours = {"HOLDFAST_SOCKET": f"{config.SHARED_DIR}/{config.SOCKET}", "HOLDFAST_JOB_UID": spec.job.uid}
    path = next((e for e in env if e.get("name") == "PYTHONPATH"), None)
    kept = [e for e in env if e.get("name") not in ours and e is not path]
    added = [{"name": k, "value": v} for k, v in ours.items()]
    return [*kept, *_python_path(path), *added]


def _python_path(user: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Ours first. A value from elsewhere (valueFrom) is moved aside and referred to."""
    if user is None or user.get("value") == "":
        return [{"name": "PYTHONPATH", "value": _LIB}]
    if "value" in user:
        return [{"name": "PYTHONPATH", "value": f"{_LIB}:{user['value']}"}]
    return [user | {"name": _USER_PYTHONPATH}, {"name": "PYTHONPATH", "value": f"{_LIB}:$({_USER_PYTHONPATH})"}]


def identity(pod: Mapping[str, Any]) -> dict[str, str]:
    """The labels that tell this pod from every other one."""
    labels = pod["metadata"].get("labels") or {}
    return {
        k: labels[k] for k in (names.LABEL_UID, names.LABEL_INDEX, names.LABEL_INCARNATION, names.LABEL_SPARE) if k in labels
    }


def _security(context: dict[str, Any]) -> dict[str, Any]:
    """A group that both containers are in, so that the trainer can write into the sidecar's memory."""
    if "fsGroup" in context:
        return context
    return context | {"fsGroup": sidecar.UID, "fsGroupChangePolicy": "OnRootMismatch"}


def _affinity(affinity: dict[str, Any], spec: JobSpec, where: Where) -> dict[str, Any]:
    """Pods of a job rather apart: what fails together should take one of them. And rather not, or not at all, on some nodes.

    The scheduler weighs pods and nodes on a scale each: a dead node that had only itself against it could win for being emptier
    than those that live.
    """
    made, selector = affinity, {names.LABEL_UID: spec.job.uid}
    for key in dict.fromkeys((HOSTNAME, spec.job.topology)):
        made = _preferring(made, "podAntiAffinity", _apart(key, selector, _SPREAD))
    for labels in where.lost:
        made = _preferring(made, "podAntiAffinity", _apart(HOSTNAME, labels, _STRONG))
    if where.rather_not:
        fields = [_not_on(node) for node in where.rather_not]
        made = _preferring(made, "nodeAffinity", {"weight": _STRONG, "preference": {"matchFields": fields}})
    return made | {"nodeAffinity": _without(made.get("nodeAffinity") or {}, where.never)} if where.never else made


def _apart(key: str, labels: Mapping[str, str], weight: int) -> dict[str, Any]:
    return {"weight": weight, "podAffinityTerm": {"topologyKey": key, "labelSelector": {"matchLabels": dict(labels)}}}


def _not_on(node: str) -> dict[str, Any]:
    """One value: the API allows no more in a match of fields."""
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def _without(affinity: dict[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """One of the user's terms must be met, or anything will do; each now leaves out these nodes. An empty term is never met."""
    key, fields = "requiredDuringSchedulingIgnoredDuringExecution", [_not_on(node) for node in nodes]
    old = affinity.get(key) or {}
    terms = old.get("nodeSelectorTerms") or []
    kept = [t | {"matchFields": [*(t.get("matchFields") or []), *fields]} if t else t for t in terms]
    return affinity | {key: old | {"nodeSelectorTerms": kept or [{"matchFields": fields}]}}


def _preferring(affinity: dict[str, Any], kind: str, term: dict[str, Any]) -> dict[str, Any]:
    """The affinity with one more preference, after those of the user."""
    key, old = "preferredDuringSchedulingIgnoredDuringExecution", affinity.get(kind) or {}
    return affinity | {kind: old | {key: [*(old.get(key) or []), term]}}


def _tolerations(tolerations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether a pod on a silent node is lost is judged by the planner, in seconds; the 300 s of Kubernetes stay out of it.

    Only NoExecute: nothing new is scheduled onto such a node.
    """
    given = {t.get("key") for t in tolerations}
    ours = [{"key": k, "operator": "Exists", "effect": "NoExecute"} for k in _DEAD_NODE if k not in given]
    return [*tolerations, *ours]
