"""Kubeflow's training-operator and a PyTorchJob on the local cluster.

The operator is built from the Go module proxy, its manifests come with the module, and `kubectl apply -k` installs them. What
this cluster lacks is made up for, and nothing else changed (`NOTE`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast_cluster import build
from holdfast_cluster.config import paths_from_environment
from holdfast_cluster.shell import run
from holdfast_demo import setting
from holdfast_demo.clusters import Cluster
from holdfast_demo.commands import ROOT
from holdfast_demo.jobs import TORCH
from holdfast_demo.kube import APPLY, Kube, Object
from holdfast_demo.steplog import StepLog
from holdfast_demo.waiting import wait_for

from ..progress import say
from .sites import STEPS, Site

MODULE = "github.com/kubeflow/training-operator"
VERSION = "v1.8.1"
NOTE = (
    f"training-operator {VERSION} with its own manifests; the cluster has no DNS, so the master's name stands in the workers' "
    "/etc/hosts with the address of a Service in front of it, and the init container asks there; the API server does not reach "
    "Services, so the validating webhook may be missed"
)
_IMAGE = "localhost/kubeflow-training-operator"
_NAMESPACE = "kubeflow"
_OPERATOR = "control-plane=kubeflow-training-operator"
_JOBS = "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs"
_SCRIPTS = "pytorchjob"
CONTAINER = "pytorch"
_FOLDER = "/checkpoints"

# Its default has an image from a registry and asks a DNS server; otherwise the same: so many tries, two seconds apart.
_INIT = f"""
- name: init-pytorch
  image: {setting.PYTHON_IMAGE}
  imagePullPolicy: IfNotPresent
  resources:
    limits: {{cpu: 100m, memory: 20Mi}}
    requests: {{cpu: 50m, memory: 10Mi}}
  command: [sh, -c, 'for try in $(seq {{{{.MaxTries}}}}); do getent hosts {{{{.MasterAddr}}}} && exit 0; sleep 2; done; exit 1']
"""


@contextlib.contextmanager
def training_operator(cluster: Cluster) -> Iterator[None]:
    """The operator, ready; removed afterwards. Builds it the first time (a minute or two)."""
    image(cluster)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        folder = Path(name).resolve()
        kustomize(folder, manifests())
        try:
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", name, seconds=60)
            words = ("rollout", "status", "deployment/training-operator", "--timeout=120s")
            cluster.kubectl("-n", _NAMESPACE, *words, seconds=150)
            yield
        finally:
            cluster.kubectl("delete", "-k", name, "--ignore-not-found", "--timeout=60s", seconds=90, check=False)


def image(cluster: Cluster) -> None:
    """Build the operator's image, with nothing but the static binary in it, and load it into the nodes."""
    paths = paths_from_environment()
    say(f"  training-operator: {build.build(paths, 'training-operator')}")
    binary = build.binary(paths, "training-operator")
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        file = Path(name) / "Dockerfile"
        file.write_text(f"FROM scratch\nCOPY {binary.name} /manager\n", encoding="utf-8")
        cluster.build(f"{_IMAGE}:{VERSION}", file=file, context=binary.parent)


def manifests() -> Path:
    """The folder of the operator's own manifests, in Go's module cache."""
    paths = paths_from_environment()
    module = build.module_folder(paths, build.ON_DEMAND["training-operator"])
    found = run([build.go(paths), "mod", "download", "-json", MODULE], timeout=300, cwd=module)
    return Path(json.loads(found)["Dir"]) / "manifests" / "overlays" / "standalone"


def kustomize(folder: Path, base: Path) -> None:
    """Write an overlay of the operator's manifests: our image, its init container's template, a webhook that may be missed."""
    (folder / "initContainer.yaml").write_text(_INIT, encoding="utf-8")
    config = {"name": "template", "configMap": {"name": "training-operator-init"}}
    mount = {"name": "template", "mountPath": "/etc/config"}
    deployment = [
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": config},
        {"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": mount},
    ]
    webhook = [
        {"op": "add", "path": f"/webhooks/{index}/{key}", "value": value}
        for index in range(5)
        for key, value in (("failurePolicy", "Ignore"), ("timeoutSeconds", 1))
    ]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": _NAMESPACE,
        "resources": [os.path.relpath(base, folder)],
        "images": [{"name": "kubeflow/training-operator", "newName": _IMAGE, "newTag": VERSION}],
        "configMapGenerator": [
            {"name": "training-operator-init", "files": ["initContainer.yaml"], "options": {"disableNameSuffixHash": True}}
        ],
        "patches": [
            {"target": {"kind": "Deployment"}, "patch": json.dumps(deployment)},
            {"target": {"kind": "ValidatingWebhookConfiguration"}, "patch": json.dumps(webhook)},
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")


def operator_nodes(kube: Kube) -> set[str]:
    """The nodes that the operator runs on."""
    return {str(pod["spec"].get("nodeName", "")) for pod in kube.list("Pod", _NAMESPACE, _OPERATOR)}


@dataclass(frozen=True)
class PyTorchSpec:
    """A PyTorchJob of three ranks that trains the GPT of examples/gpt. `address`: of the Service in front of its master."""

    name: str
    namespace: str
    claim: str
    torch: str
    address: str

    def manifest(self) -> Object:
        """The PyTorchJob; whatever is not said is Kubeflow's or Kubernetes's default."""
        replicas = {"Master": self._replicas(1), "Worker": self._replicas(2, hosts=True)}
        meta = {"name": self.name, "namespace": self.namespace}
        spec = {"pytorchReplicaSpecs": replicas}
        return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": meta, "spec": spec}

    def _replicas(self, count: int, hosts: bool = False) -> Object:
        pod: Object = {"containers": [self._container()], "volumes": self._volumes(), "affinity": self._apart()}
        if hosts:
            pod["hostAliases"] = [{"ip": self.address, "hostnames": [f"{self.name}-master-0"]}]
        return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": pod}}

    def _container(self) -> Object:
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TORCH}:/app"}
        mounts = {"torch": TORCH, "script": "/script", "checkpoints": _FOLDER}
        return {
            "name": CONTAINER,
            "image": setting.IMAGES["gpt"],
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "/script/job.py", f"{_FOLDER}/{self.name}", "--steps", str(STEPS)],
            "env": [{"name": k, "value": v} for k, v in env.items()],
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "volumeMounts": [{"name": k, "mountPath": v} for k, v in mounts.items()],
        }

    def _volumes(self) -> list[Object]:
        return [
            {"name": "torch", "hostPath": {"path": self.torch, "type": "Directory"}},
            {"name": "script", "configMap": {"name": _SCRIPTS}},
            {"name": "checkpoints", "persistentVolumeClaim": {"claimName": self.claim}},
        ]

    def _apart(self) -> Object:
        """Rather on different nodes, as Holdfast's pods are: a dead node takes one rank."""
        selector = {"matchLabels": {"training.kubeflow.org/job-name": self.name}}
        term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
        return {
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
        }


class PyTorchJob:
    """A PyTorchJob by name, its pods by rank, and the log of rank 0."""

    def __init__(self, site: Site, name: str) -> None:
        self.kube, self.namespace, self.name = site.kube, site.namespace, name
        labels = f"training.kubeflow.org/job-name={name}"
        self._selector = labels
        self._apply(site)
        self.log = StepLog(
            self.kube, self.namespace, name, selector=f"{labels},training.kubeflow.org/replica-type=master", container=CONTAINER
        )

    def _apply(self, site: Site) -> None:
        self.kube.apply(scripts(self.namespace))
        address = self.kube.apply(service(self.namespace, self.name))["spec"]["clusterIP"]
        spec = PyTorchSpec(self.name, self.namespace, site.workspace.claim, site.torch, address)
        query = {"fieldManager": "holdfast-bench", "force": "true"}
        self.kube.request("PATCH", f"{_JOBS.format(self.namespace)}/{self.name}", spec.manifest(), APPLY, query)

    def pods(self) -> list[Object]:
        """All its pods."""
        return self.kube.list("Pod", self.namespace, self._selector)

    def pod(self, rank: int) -> Object:
        """The running pod of a rank, waited for."""
        name = f"{self.name}-master-0" if rank == 0 else f"{self.name}-worker-{rank - 1}"
        found = wait_for(lambda: _running(self.kube.find("Pod", self.namespace, name)), 60, f"pod {name} to run")
        assert found is not None
        return found

    def brief(self) -> str:
        """Its pods in a line."""
        return ", ".join(
            f"{p['metadata']['name']} {p['status'].get('phase')} on {p['spec'].get('nodeName')}" for p in self.pods()
        )

    def end(self) -> None:
        """Delete it and wait until its pods are gone."""
        self.log.close()
        self.kube.request("DELETE", f"{_JOBS.format(self.namespace)}/{self.name}")
        wait_for(lambda: not self.pods(), 120, f"pods of {self.name} to go", every=0.5, seen=self.brief)


def _running(pod: Object | None) -> Object | None:
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return None
    return pod if pod["status"].get("phase") == "Running" else None


def scripts(namespace: str) -> Object:
    """The ConfigMap with the training script, and with the empty module in Holdfast's place."""
    script = (ROOT / "bench" / "holdfast_bench" / "jobs" / "gpt_pytorchjob.py").read_text(encoding="utf-8")
    meta = {"name": _SCRIPTS, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"job.py": script, "holdfast.py": "\n"}}


def service(namespace: str, job: str) -> Object:
    """An address that stays when the master's pod is replaced, as its name would where there is DNS."""
    selector = {"training.kubeflow.org/job-name": job, "training.kubeflow.org/replica-type": "master"}
    spec = {"selector": selector, "ports": [{"name": "store", "port": 23456}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{job}-address", "namespace": namespace}, "spec": spec}
