"""Names that Kubernetes objects of a job bear: labels, containers, volumes. One place, because others select by them."""

from __future__ import annotations

GROUP = "holdfast.dev"
VERSION = "v1alpha1"
KIND = "TrainingJob"
PLURAL = "trainingjobs"
API_VERSION = f"{GROUP}/{VERSION}"

LABEL_JOB = f"{GROUP}/job"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_INDEX = f"{GROUP}/index"
LABEL_SPARE = f"{GROUP}/spare"  # its number, on pods that wait without a rank, and after they took one
LABEL_INCARNATION = f"{GROUP}/incarnation"
TAINT = f"{GROUP}/suspect"  # key of the taint on nodes that a job avoids
ANNOTATION_SPEC = f"{GROUP}/spec"  # digest of what the pod was made from
ANNOTATION_MADE = f"{GROUP}/made"  # when, in seconds by the operator's clock: before or after it knew something

TRAINER = "trainer"
SIDECAR = "holdfast-sidecar"
SHARED_VOLUME = "holdfast-shared"
TLS_VOLUME = "holdfast-tls"
STORE_VOLUME = "holdfast-store-"  # followed by the store's name

COMPONENT = "holdfast-operator"


def tls_secret(job: str) -> str:
    """Name of the Secret with a job's certificate."""
    return f"{job}-holdfast-tls"


def env_prefix(store: str) -> str:
    """Prefix of a store's credentials in the sidecar's environment, for example HOLDFAST_S3_."""
    return f"HOLDFAST_{store.upper().replace('-', '_')}_"


def labels(job: str, uid: str) -> dict[str, str]:
    """Labels that every object of a job bears."""
    return {LABEL_JOB: job, LABEL_UID: uid}
