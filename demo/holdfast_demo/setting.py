"""What is put on the cluster before a job can run: images, the operator's release, a namespace with its secret and claim."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .clusters import Cluster, missing_setting
from .commands import ROOT, run
from .errors import DemoError
from .jobs import claim_store, s3_store
from .kube import Object
from .waiting import wait_for

IMAGES = {
    "operator": "localhost/holdfast-operator:dev",
    "sidecar": "localhost/holdfast-sidecar:dev",
    "gpt": "localhost/holdfast-example-gpt:dev",
}
CLAIM = "checkpoints"
SECRET = "s3"  # noqa: S105 - the name of a Secret, not one
PYTHON_IMAGE = "localhost/holdfast-base:bookworm"  # of the local cluster: Python and nothing else


@dataclass(frozen=True)
class Release:
    """The operator as installed by helm. `watch` empty: all namespaces."""

    name: str = "holdfast"
    namespace: str = "holdfast-system"
    watch: tuple[str, ...] = ()


def existing_images() -> dict[str, str]:
    """Images that the user of CLUSTER=existing pushed; raises DemoError that says what is needed."""
    given = dict(pair.partition("=")[::2] for pair in os.environ.get("HOLDFAST_IMAGES", "").split(",") if pair)
    missing = sorted(set(IMAGES) - set(given))
    if missing:
        raise missing_setting(
            "HOLDFAST_IMAGES=operator=REF,sidecar=REF,gpt=REF",
            f"images that the cluster can pull, built from Dockerfile (targets operator, sidecar) and from "
            f"examples/gpt/Dockerfile (with torch in it); not given: {', '.join(missing)}",
        )
    return given


def build_image(cluster: Cluster, name: str) -> str:
    """Build one of IMAGES and load it into the nodes; what was done."""
    if name == "gpt":
        folder = ROOT / "examples" / "gpt"
        return cluster.build(IMAGES[name], file=folder / "Dockerfile", context=folder, args=("TORCH=skip",))
    return cluster.build(IMAGES[name], file=ROOT / "Dockerfile", context=ROOT, target=name)


def torch_site() -> str:
    """A folder with torch for the trainers, made if it is missing (minutes, once)."""
    lines = run([ROOT / "scripts" / "torch-site"], seconds=900).splitlines()
    if not lines:
        raise DemoError("scripts/torch-site printed no folder")
    return lines[-1]


def install(cluster: Cluster, images: dict[str, str], release: Release, *, extra: Sequence[str] = ()) -> None:
    """A fresh operator from the chart, ready. An earlier release of the same name goes first: its image may be older."""
    uninstall(cluster, release)
    _no_other_operator(cluster, release)
    values = [f"{n}.image.{k}={v}" for n in ("operator", "sidecar") for k, v in _reference(images[n]).items()]
    if release.watch:
        values.append(f"watch.namespaces={{{','.join(release.watch)}}}")
    sets = [word for value in (*values, *extra) for word in ("--set", value)]
    chart = str(ROOT / "charts" / "holdfast")
    words = ["install", release.name, chart, "-n", release.namespace, "--create-namespace"]
    try:
        cluster.helm(*words, "--take-ownership", "--wait", "--timeout", "120s", *sets, seconds=150)
    except DemoError as error:
        raise DemoError(f"{error}; the operator says: {_last_words(cluster, release)}") from None


def _last_words(cluster: Cluster, release: Release) -> str:
    """The end of the log of an operator that does not start."""
    for pod in operators(cluster, release):
        lines = cluster.kube.logs(release.namespace, pod["metadata"]["name"], "operator", tail=3).splitlines()
        return " | ".join(lines)
    return "nothing, it has no pod"


def uninstall(cluster: Cluster, release: Release) -> None:
    """Remove the release and wait until its operator is gone."""
    cluster.helm("uninstall", release.name, "-n", release.namespace, "--ignore-not-found", "--wait", check=False)
    wait_for(lambda: not operators(cluster, release), 60, "the old operator's pod to go")


def operators(cluster: Cluster, release: Release) -> list[Object]:
    """The release's operator pods that are not being deleted."""
    pods = cluster.kube.list("Pod", release.namespace, f"app.kubernetes.io/instance={release.name}")
    return [p for p in pods if "deletionTimestamp" not in p["metadata"]]


def operator(cluster: Cluster, release: Release) -> Object:
    """The operator's pod, waited for."""
    return wait_for(lambda: operators(cluster, release), 60, "the operator's pod")[0]


def _no_other_operator(cluster: Cluster, release: Release) -> None:
    found = cluster.kube.list("Deployment", selector="app.kubernetes.io/name=holdfast,app.kubernetes.io/component=operator")
    if found:
        where = ", ".join(f"{d['metadata']['namespace']}/{d['metadata']['name']}" for d in found)
        raise DemoError(f"another Holdfast operator runs on this cluster ({where}): `helm uninstall` it first")


def _reference(image: str) -> dict[str, str]:
    repository, at, digest = image.partition("@")
    if at:
        return {"repository": repository, "digest": digest}
    head, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return {"repository": image, "tag": "latest"}
    return {"repository": head, "tag": tag}


@dataclass(frozen=True)
class Workspace:
    """A namespace with what a job's stores need. `claim` and `url` are empty where there is no such store."""

    namespace: str
    claim: str = ""
    url: str = ""

    def stores(self, pvc_every: Object, s3_every: Object, keep: int = 3) -> tuple[Object, ...]:
        """Entries for spec.checkpoint.stores."""
        found = [claim_store(self.claim, pvc_every, keep)] if self.claim else []
        found += [s3_store(self.url, SECRET, s3_every, keep)] if self.url else []
        return tuple(found)


def make_namespace(cluster: Cluster, name: str) -> None:
    """Create a namespace and wait for its service account, without which pods are refused."""
    cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    path = f"/api/v1/namespaces/{name}/serviceaccounts"
    wait_for(lambda: cluster.kube.request("GET", path)["items"], 30, f"service account of namespace {name}")


def drop_namespace(cluster: Cluster, name: str, limit: float = 60) -> None:
    """Delete a namespace with everything in it."""
    cluster.kube.delete("Namespace", "", name)
    wait_for(lambda: cluster.kube.find("Namespace", "", name) is None, limit, f"namespace {name} to go", every=0.5)


def s3_secret(namespace: str, access: dict[str, str], name: str = SECRET) -> Object:
    """The Secret that a store's secretRef names."""
    data = {
        "AWS_ACCESS_KEY_ID": access["access_key"],
        "AWS_SECRET_ACCESS_KEY": access["secret_key"],
        "AWS_ENDPOINT_URL": access["endpoint"],
        "AWS_REGION": access["region"],
    }
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {k: v for k, v in data.items() if v}}


def make_workspace(cluster: Cluster, namespace: str, prefix: str) -> Workspace:
    """Namespace, Secret and claim. `prefix`: folder in the bucket, so that runs do not see each other's steps."""
    make_namespace(cluster, namespace)
    if cluster.existing:
        return _existing_workspace(cluster, namespace, prefix)
    access = cluster.s3_access()
    cluster.kube.apply(s3_secret(namespace, access))
    cluster.claim(namespace, CLAIM)
    return Workspace(namespace, CLAIM, f"s3://{access['bucket']}/{prefix}")


def _existing_workspace(cluster: Cluster, namespace: str, prefix: str) -> Workspace:
    """The user's own storage, as far as it was named in the environment."""
    storage_class, url = os.environ.get("HOLDFAST_STORAGE_CLASS", ""), os.environ.get("HOLDFAST_S3_URL", "")
    if not storage_class and not url:
        raise missing_setting(
            "HOLDFAST_STORAGE_CLASS=NAME or HOLDFAST_S3_URL=s3://BUCKET/PREFIX",
            "a storage class for a ReadWriteMany claim, or a bucket (keys in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_ENDPOINT_URL, AWS_REGION)",
        )
    if storage_class:
        cluster.kube.apply(_claim(namespace, storage_class))
    if url:
        names = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY"}
        names |= {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION"}
        access = {key: os.environ.get(name, "") for key, name in names.items()}
        cluster.kube.apply(s3_secret(namespace, access))
    return Workspace(namespace, CLAIM if storage_class else "", f"{url.rstrip('/')}/{prefix}" if url else "")


def _claim(namespace: str, storage_class: str) -> Object:
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": "5Gi"}},
    }
    meta = {"name": CLAIM, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
