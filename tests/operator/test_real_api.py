"""The operator as a process against a real API server: on exactly its listed permissions, and through outages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import OPERATOR, OPERATOR_USER, ROOT, ControlPlane
from holdfast_operator import pods, spec
from holdfast_operator.pods import Where
from holdfast_operator.settings import Settings
from operator_samples import job as sample

RULES = yaml.safe_load((ROOT / "operator/rbac-rules.yaml").read_text())
RBAC = "rbac.authorization.k8s.io"

pytestmark = pytest.mark.cluster


class Operator:
    """The operator as a process, with its log."""

    def __init__(self, plane: ControlPlane, namespace: str, log: Path) -> None:
        self.log, self._env = (
            log,
            os.environ
            | {
                "KUBECONFIG": str(plane.kubeconfig(OPERATOR)),
                "HOLDFAST_SIDECAR_IMAGE": "sidecar:1",
                "HOLDFAST_NAMESPACES": namespace,
                "HOLDFAST_HTTP_PORT": "0",
            },
        )
        self.start()

    def start(self) -> None:
        with self.log.open("a") as stream:
            command = [sys.executable, "-m", "holdfast_operator"]
            self.process = subprocess.Popen(command, env=self._env, stdout=stream, stderr=stream)

    def stop(self) -> None:
        """It ends by itself when told to, and says so."""
        self.process.terminate()
        assert self.process.wait(10) == 0, self.log.read_text()

    def until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        return value


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """As a user who may do what is listed, and nothing else."""
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "listed"}, "rules": RULES}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "listed"},
        "subjects": [{"kind": "User", "name": OPERATOR_USER, "apiGroup": RBAC}],
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "listed"},
    }
    plane.kubectl("apply", "-f", "-", stdin=role)
    plane.kubectl("apply", "-f", "-", stdin=binding)
    made = Operator(plane, namespace, tmp_path / "log")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


class Watched:
    """The job under test as `kubectl` sees it."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane, self._at = plane, ("-n", namespace)
        container = {"name": "trainer", "image": "trainer:1", "command": ["python3", "t.py"]}
        self._body = {
            "apiVersion": "holdfast.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "gpt", "namespace": namespace},
            "spec": {"workers": {"replicas": 2, "spares": 1, "template": {"spec": {"containers": [container]}}}},
        }

    def apply(self) -> None:
        self._plane.kubectl("apply", "-f", "-", stdin=self._body)

    def delete(self, *what: str) -> None:
        self._plane.kubectl("delete", *what, *self._at, "--force", "--grace-period=0")

    def bind(self, name: str, node: str) -> None:
        """As the scheduler does."""
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
        path = f"/api/v1/namespaces/{self._at[1]}/pods/{name}/binding"
        self._plane.kubectl("create", "--raw", path, "-f", "-", stdin=body)

    def status(self) -> dict[str, Any]:
        made: dict[str, Any] = self._plane.get("tj", "gpt", *self._at).get("status", {})
        return made

    def names(self, kind: str) -> list[str]:
        return sorted(o["metadata"]["name"] for o in self._plane.get(kind, *self._at)["items"])


@pytest.fixture
def job(plane: ControlPlane, namespace: str) -> Watched:
    return Watched(plane, namespace)


def test_the_listed_permissions_are_enough(operator: Operator, job: Watched):
    job.apply()
    first = operator.until(lambda: len(job.names("pods")) == 2 and job.names("pods"))
    assert job.names("secrets") == ["gpt-holdfast-tls"]
    assert job.names("services") == ["gpt"]
    assert job.status()["attempt"] == 1
    job.delete("pod", first[0])
    operator.until(lambda: len(job.names("pods")) == 2 and job.names("pods") != first)
    operator.until(lambda: job.names("events"))
    job.delete("tj", "gpt")
    operator.until(lambda: "is gone" in operator.log.read_text())
    operator.stop()
    assert "forbidden" not in operator.log.read_text().lower()
    assert "Traceback" not in operator.log.read_text()


def test_spares_come_once_all_workers_have_a_node(operator: Operator, job: Watched):
    job.apply()
    workers = operator.until(lambda: len(job.names("pods")) == 2 and job.names("pods"))
    for name in workers:
        job.bind(name, "n1")
    spare = operator.until(lambda: len(job.names("pods")) == 3 and (set(job.names("pods")) - set(workers)).pop())
    assert "-s1-" in spare
    assert job.status()["spares"] == "0/1"
    operator.stop()
    assert "forbidden" not in operator.log.read_text().lower()


def test_the_api_server_takes_what_keeps_a_pod_off_nodes(plane: ControlPlane, namespace: str):
    """One match of fields for each node, all of them in each of the user's terms."""
    body = sample()
    body["metadata"]["namespace"] = namespace
    body["spec"]["workers"]["template"]["spec"]["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
            }
        }
    }
    where = Where(never=("n1", "n2"), rather_not=("n3", "n4"), lost=({"holdfast.dev/index": "1"},))
    made = pods.build(spec.parse(body), 0, 1, 0, Settings("sidecar:1"), where)
    made["metadata"].pop("ownerReferences")
    plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=made)
    spare = pods.build_spare(spec.parse(body), 1, 0, Settings("sidecar:1"), where)
    spare["metadata"].pop("ownerReferences")
    plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=spare)


def test_an_api_server_that_is_away_is_waited_for(plane: ControlPlane, operator: Operator, job: Watched):
    job.apply()
    first = operator.until(lambda: len(job.names("pods")) == 2 and job.names("pods"))
    plane.kill_api()
    operator.until(lambda: "Unreachable" in operator.log.read_text() or "failed; will retry" in operator.log.read_text(), 60)
    plane.start_api()
    job.delete("pod", *first)
    operator.until(lambda: len(job.names("pods")) == 2 and not set(job.names("pods")) & set(first), 60)
    assert job.status()["restarts"]["pod"] == 2


def test_an_operator_killed_at_any_moment_makes_nothing_twice(operator: Operator, job: Watched):
    def killed_when(condition: Callable[[], Any]) -> None:
        operator.until(condition)
        operator.process.kill()
        operator.process.wait()
        starts.append(operator.log.read_text().count("watching"))
        operator.start()

    starts: list[int] = []
    job.apply()
    killed_when(lambda: job.names("secrets"))
    killed_when(lambda: job.status().get("attempt"))
    killed_when(lambda: job.names("pods"))
    first = operator.until(lambda: len(job.names("pods")) == 2 and job.names("pods"))
    job.delete("pod", first[0])
    killed_when(lambda: first[0] not in job.names("pods"))
    killed_when(lambda: len(job.names("pods")) == 2)
    operator.until(lambda: operator.log.read_text().count("watching") > starts[-1])
    assert first[1] in job.names("pods")  # what was well was left alone
    assert len(job.names("pods")) == 2
    assert job.status()["restarts"]["pod"] <= 1
    assert job.status()["attempt"] <= 2
