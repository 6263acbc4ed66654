"""The checkpoint sidecar's container and volumes. Pure: `pods` puts them into the user's template."""

from __future__ import annotations

from typing import Any

from holdfast_core import config, wire
from holdfast_core.config import SidecarConfig

from . import names
from .settings import Settings
from .spec import JobSpec, Store, mount_path, store_config

UID = 65532
_BASE_MEMORY = 256 * 2**20  # interpreter, buffers of uploads, page tables
_START_SECONDS = 600  # faulting in a big arena takes a while


def volumes(spec: JobSpec) -> list[dict[str, Any]]:
    """The memory that sidecar and trainer share, the certificate, and the stores' claims."""
    shared = {"name": names.SHARED_VOLUME, "emptyDir": {"medium": "Memory"}}
    secret = {"secretName": names.tls_secret(spec.job.name), "defaultMode": 0o440}
    claims = [
        {"name": names.STORE_VOLUME + s.name, "persistentVolumeClaim": {"claimName": s.claim}} for s in spec.stores if s.claim
    ]
    return [shared, {"name": names.TLS_VOLUME, "secret": secret}, *claims]


def container(spec: JobSpec, pod: str, index: int, slot_bytes: int, settings: Settings) -> dict[str, Any]:
    """A native sidecar: an init container that stays. It is up before the trainer starts and ends after it."""
    settings_json = wire.dumps(sidecar_config(spec, pod, index, slot_bytes)).decode()
    body: dict[str, Any] = {
        "name": names.SIDECAR,
        "image": settings.sidecar_image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",
        "env": [{"name": config.CONFIG_ENV, "value": settings_json}],
        "ports": [
            {"name": "holdfast-api", "containerPort": config.API_PORT},
            {"name": "holdfast-mtr", "containerPort": config.METRICS_PORT},
        ],
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": config.METRICS_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": _START_SECONDS,
        },
        "resources": _resources(spec, slot_bytes),
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


def sidecar_config(spec: JobSpec, pod: str, index: int, slot_bytes: int) -> SidecarConfig:
    """What this pod's sidecar is told at its start."""
    job = spec.job
    return SidecarConfig(
        job_uid=job.uid,
        job=job.name,
        namespace=job.namespace,
        pod=pod,
        index=index,
        first_rank=index * job.processes,
        processes=job.processes,
        world_size=job.world_size,
        slots=spec.slots,
        slot_bytes=slot_bytes,
        stores=tuple(store_config(s, job.namespace, job.name) for s in spec.stores),
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
    memory = str(_BASE_MEMORY + spec.job.processes * spec.slots * slot_bytes)
    resources: dict[str, Any] = {"requests": {"cpu": "50m", "memory": memory}}
    if spec.slot_bytes:
        resources["limits"] = {"memory": memory}
    return resources
