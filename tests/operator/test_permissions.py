"""On a real API server: the operator lives on exactly the permissions of rbac-rules.yaml, in one namespace, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds/trainingjobs.holdfast.dev.yaml"
RULES = yaml.safe_load((ROOT / "operator/rbac-rules.yaml").read_text())

pytestmark = pytest.mark.cluster


def kubectl(*words: str, stdin: object = None) -> str:
    text = None if stdin is None else json.dumps(stdin)
    command = [ROOT / "cluster/cluster", "kubectl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], Any], seconds: float, log: Path) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    return value


@pytest.fixture
def namespace() -> Iterator[str]:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/trainingjobs.holdfast.dev")
    name = f"operator-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "clusterrolebinding,clusterrole", name, "--ignore-not-found")
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubeconfig(namespace: str, tmp_path: Path) -> Path:
    """Of a service account with these rules and no others."""
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": namespace}, "rules": RULES}
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": namespace}
    binding = {"kind": "ClusterRoleBinding", "metadata": {"name": namespace}, "subjects": [subject], "roleRef": reference}
    kubectl("create", "serviceaccount", "operator", "-n", namespace)
    kubectl("apply", "-f", "-", stdin=role)
    kubectl("apply", "-f", "-", stdin=binding | {"apiVersion": f"{group}/v1"})
    found = subprocess.run([ROOT / "cluster/cluster", "kubeconfig"], capture_output=True, text=True, check=True)
    config = yaml.safe_load(Path(found.stdout.strip()).read_text())
    token = kubectl("create", "token", "operator", "-n", namespace).strip()
    config["users"] = [{"name": u["name"], "user": {"token": token}} for u in config["users"]]
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def log(kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """The log of an operator that runs. No image is there: pods are made, but never come up."""
    file = tmp_path / "log"
    env = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "HOLDFAST_SIDECAR_IMAGE": "localhost/no-such-sidecar:1",
        "HOLDFAST_NAMESPACES": namespace,
        "HOLDFAST_HTTP_PORT": "0",
    }
    with file.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "holdfast_operator"], env=env, stdout=stream, stderr=stream)
    try:
        yield file
        process.terminate()
        assert process.wait(15) == 0, file.read_text()
    finally:
        process.kill()
        process.wait()


def job(namespace: str) -> dict[str, Any]:
    container = {"name": "trainer", "image": "localhost/none:1", "command": ["python3", "t.py"]}
    return {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "gpt", "namespace": namespace},
        "spec": {"workers": {"replicas": 2, "template": {"spec": {"containers": [container]}}}},
    }


def test_the_listed_permissions_are_enough(namespace: str, log: Path):
    def status() -> dict[str, Any]:
        return json.loads(kubectl("get", "tj", "gpt", "-n", namespace, "-o", "json")).get("status", {})

    def pods() -> list[str]:
        found = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
        return sorted(p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"])

    def image_missing() -> bool:
        conditions = {c["type"]: c for c in status().get("conditions", [])}
        return conditions.get("PodsReady", {}).get("reason") in ("ErrImagePull", "ImagePullBackOff")

    def events() -> str:
        return kubectl("get", "events", "-n", namespace, "--field-selector", "involvedObject.name=gpt")

    kubectl("apply", "-f", "-", stdin=job(namespace))
    first = until(lambda: len(pods()) == 2 and pods(), 30, log)
    until(image_missing, 60, log)
    assert "container holdfast-sidecar" in status()["message"]
    until(
        lambda: "ErrImagePull" in kubectl("get", "events", "-n", namespace, "--field-selector", "involvedObject.name=gpt"),
        30,
        log,
    )
    assert kubectl("get", "secret/gpt-holdfast-tls", "service/gpt", "-n", namespace)
    kubectl("delete", "pod", first[0], "-n", namespace, "--wait=false")
    until(lambda: len(pods()) == 2 and pods() != first, 60, log)
    kubectl("delete", "tj", "gpt", "-n", namespace, "--wait=false")
    until(lambda: not pods(), 60, log)
    until(lambda: "is gone" in log.read_text(), 30, log)
    assert "forbidden" not in log.read_text().lower()
    assert "Traceback" not in log.read_text()
