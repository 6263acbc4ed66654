"""A worker pod: the user's template with the launcher before the command and the checkpoint sidecar beside it. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from holdfast_core import config

from . import names, sidecar
from .settings import Settings
from .spec import JobSpec

_PYTHON = re.compile(r"^(.*/)?python[0-9.]*$")
_LIB = f"{config.SHARED_DIR}/{config.LIB_DIR}"
_USER_PYTHONPATH = "HOLDFAST_USER_PYTHONPATH"
_DEAD_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def build(
    spec: JobSpec, index: int, incarnation: int, slot_bytes: int, settings: Settings, avoid: Sequence[str] = ()
) -> dict[str, Any]:
    """The pod of an index and incarnation. `slot_bytes` sizes its arena, 0 if nobody knows yet; `avoid` names nodes."""
    template = copy.deepcopy(dict(spec.template))
    name = spec.job.pod_name(index, incarnation)
    pod = template.get("spec") or {}
    pod |= {
        "restartPolicy": "OnFailure",
        "hostname": name[:63].rstrip("-"),
        "subdomain": spec.job.name,
        "volumes": [*(pod.get("volumes") or []), *sidecar.volumes(spec)],
        "initContainers": [
            sidecar.container(spec, name, index, slot_bytes, settings),
            *(pod.get("initContainers") or []),
        ],
        "containers": [_container(c, spec, index) for c in pod.get("containers") or []],
        "securityContext": _security(pod.get("securityContext") or {}),
        "affinity": _affinity(pod.get("affinity") or {}, spec, avoid),
        "tolerations": _tolerations(pod.get("tolerations") or []),
    }
    pod.setdefault("automountServiceAccountToken", False)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(template.get("metadata") or {}, spec, name, index, incarnation),
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


def _metadata(template: dict[str, Any], spec: JobSpec, name: str, index: int, incarnation: int) -> dict[str, Any]:
    own = names.labels(spec.job.name, spec.job.uid)
    own |= {names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: str(incarnation)}
    scrape = {"prometheus.io/scrape": "true", "prometheus.io/port": str(config.METRICS_PORT)}
    return {
        "name": name,
        "namespace": spec.job.namespace,
        "labels": {**(template.get("labels") or {}), **own},
        "annotations": {**scrape, **(template.get("annotations") or {}), names.ANNOTATION_SPEC: spec.fingerprint},
        "ownerReferences": [owner(spec)],
    }


def _container(container: dict[str, Any], spec: JobSpec, index: int) -> dict[str, Any]:
    if container.get("name") != names.TRAINER:
        return container
    command = [*container["command"], *(container.pop("args", None) or [])]
    python = command[0] if _PYTHON.match(command[0]) else "python3"
    mount = {"name": names.SHARED_VOLUME, "mountPath": config.SHARED_DIR}
    return container | {
        "command": [python, "-m", "holdfast.launcher", "--", *command],
        "env": _environment(container.get("env") or [], spec, index),
        "volumeMounts": [*(container.get("volumeMounts") or []), mount],
    }


def _environment(env: list[dict[str, Any]], spec: JobSpec, index: int) -> list[dict[str, Any]]:
    ours = {
        "HOLDFAST_SOCKET": f"{config.SHARED_DIR}/{config.SOCKET}",
        "HOLDFAST_JOB_UID": spec.job.uid,
        "HOLDFAST_POD_INDEX": str(index),
    }
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


def _security(context: dict[str, Any]) -> dict[str, Any]:
    """A group that both containers are in, so that the trainer can write into the sidecar's memory."""
    if "fsGroup" in context:
        return context
    return context | {"fsGroup": sidecar.UID, "fsGroupChangePolicy": "OnRootMismatch"}


def _affinity(affinity: dict[str, Any], spec: JobSpec, avoid: Sequence[str]) -> dict[str, Any]:
    """Pods of a job rather on different nodes: a dead node should take one of them. And rather not on suspect nodes."""
    selector = {"matchLabels": {names.LABEL_UID: spec.job.uid}}
    apart = {
        "weight": 100,
        "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector},
    }
    made = _preferring(affinity, "podAntiAffinity", apart)
    for node in avoid:  # one value each: the API allows no more in a match of fields
        elsewhere = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node]}]}
        made = _preferring(made, "nodeAffinity", {"weight": 100, "preference": elsewhere})
    return made


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
