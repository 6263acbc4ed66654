"""The other objects that a job owns: its headless Service and the Secret with its certificate. Pure builders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast_core import config

from . import certificates, names, pods
from .spec import JobSpec


def service(spec: JobSpec) -> dict[str, Any]:
    """Stable DNS names for the pods where the cluster has DNS; nothing in Holdfast needs it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, spec.job.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.labels(spec.job.name, spec.job.uid),
            "ports": [
                {"name": "api", "port": config.API_PORT, "targetPort": config.API_PORT},
                {"name": "peer", "port": config.PEER_PORT, "targetPort": config.PEER_PORT},
                {"name": "metrics", "port": config.METRICS_PORT, "targetPort": config.METRICS_PORT},
            ],
        },
    }


def secret(spec: JobSpec, files: Mapping[str, str]) -> dict[str, Any]:
    """The job's certificate and key."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _metadata(spec, names.tls_secret(spec.job.name)),
        "data": certificates.to_secret(files),
    }


def owned_by(body: Mapping[str, Any], uid: str) -> bool:
    """Whether an object's controller is the job with this UID."""
    references = body.get("metadata", {}).get("ownerReferences") or []
    return any(r.get("uid") == uid and r.get("controller") for r in references)


def of_earlier_job(body: Mapping[str, Any], name: str) -> bool:
    """Whether an object was left by an earlier job of the same name, and is about to be collected."""
    return (body.get("metadata", {}).get("labels") or {}).get(names.LABEL_JOB) == name


def _metadata(spec: JobSpec, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": spec.job.namespace,
        "labels": names.labels(spec.job.name, spec.job.uid),
        "ownerReferences": [pods.owner(spec)],
    }
