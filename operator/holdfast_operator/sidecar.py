"""The checkpoint sidecar's container and volumes. Pure: `pods` puts them into the user's template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast_core import config, wire
from holdfast_core.config import SidecarConfig
from holdfast_core.erasure.groups import Place, make_groups
from holdfast_core.erasure.layout import Layout
from holdfast_core.planner import Job

from . import names
from .settings import Settings
from .spec import JobSpec, Store, mount_path, store_config

UID = 65532
_BASE_MEMORY = 256 * 2**20  # interpreter, buffers of uploads, page tables
_PARITY_BUFFERS = 2  # parity of one step stays until that of a newer one is whole
_START_SECONDS = 600  # faulting in a big arena takes a while


@dataclass(frozen=True)
class Arena:
    """Whose ranks the pod has (index -1: those of nobody yet), and the size of a snapshot, 0 if nobody knows yet."""

    index: int
    slot_bytes: int


def volumes(spec: JobSpec) -> list[dict[str, Any]]:
    """The memory that sidecar and trainer share, the certificate, and the stores' claims."""
    shared = {"name": names.SHARED_VOLUME, "emptyDir": {"medium": "Memory"}}
    secret = {"secretName": names.tls_secret(spec.job.name), "defaultMode": 0o440}
    claims = [
        {"name": names.STORE_VOLUME + s.name, "persistentVolumeClaim": {"claimName": s.claim}} for s in spec.stores if s.claim
    ]
    return [shared, {"name": names.TLS_VOLUME, "secret": secret}, *claims]


def container(spec: JobSpec, pod: str, arena: Arena, settings: Settings) -> dict[str, Any]:
    """A native sidecar: an init container that stays. It is up before the trainer starts and ends after it."""
    settings_json = wire.dumps(sidecar_config(spec, pod, arena, settings.trace)).decode()
    body: dict[str, Any] = {
        "name": names.SIDECAR,
        "image": settings.sidecar_image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",
        "env": [{"name": config.CONFIG_ENV, "value": settings_json}],
        "ports": [
            {"name": "holdfast-api", "containerPort": config.API_PORT},
            {"name": "holdfast-peer", "containerPort": config.PEER_PORT},
            {"name": "holdfast-mtr", "containerPort": config.METRICS_PORT},
        ],
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": config.METRICS_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": _START_SECONDS,
        },
        "resources": _resources(spec, arena.slot_bytes),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": _mounts(spec),
    }
    secrets = [_secret(s) for s in spec.stores if s.secret]
    return body | ({"envFrom": secrets} if secrets else {})


def sidecar_config(spec: JobSpec, pod: str, arena: Arena, trace: bool = False) -> SidecarConfig:
    """What this pod's sidecar is told at its start. A spare has index -1, and its ranks when it takes some."""
    job = spec.job
    return SidecarConfig(
        job_uid=job.uid,
        job=job.name,
        namespace=job.namespace,
        pod=pod,
        index=arena.index,
        first_rank=max(0, arena.index) * job.processes,
        processes=job.processes,
        world_size=job.world_size,
        slots=spec.slots,
        slot_bytes=arena.slot_bytes,
        stores=tuple(store_config(s, job.namespace, job.name) for s in spec.stores),
        peers=job.peers,
        trace=trace,
    )


def _secret(store: Store) -> dict[str, Any]:
    return {"prefix": names.env_prefix(store.name), "secretRef": {"name": store.secret}}


def _mounts(spec: JobSpec) -> list[dict[str, Any]]:
    shared = {"name": names.SHARED_VOLUME, "mountPath": config.SHARED_DIR}
    tls = {"name": names.TLS_VOLUME, "mountPath": config.TLS_DIR, "readOnly": True}
    claims = [{"name": names.STORE_VOLUME + s.name, "mountPath": mount_path(s)} for s in spec.stores if s.claim]
    return [shared, tls, *claims]


def _resources(spec: JobSpec, slot_bytes: int) -> dict[str, Any]:
    """Snapshots are charged to the sidecar. A limit only where the user gave a size: auto must be able to grow."""
    rank = spec.slots * slot_bytes + _PARITY_BUFFERS * _parity_bytes(spec.job, slot_bytes)
    memory = str(_BASE_MEMORY + spec.job.processes * rank)
    resources: dict[str, Any] = {"requests": {"cpu": "50m", "memory": memory}}
    if spec.slot_bytes:
        resources["limits"] = {"memory": memory}
    return resources


def _parity_bytes(job: Job, slot_bytes: int) -> int:
    """What a rank holds for its peers: in the smallest group of the job, where it is most."""
    if not slot_bytes:
        return 0
    groups = make_groups([Place(i, "") for i in range(job.replicas)], job.peers.group_size, job.peers.parity)
    shapes = {(len(g.members), g.parity) for g in groups}
    return max((Layout.of(n, m, [slot_bytes] * n).parity_bytes for n, m in shapes), default=0)
