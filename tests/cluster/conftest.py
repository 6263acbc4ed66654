"""The running cluster as fixtures. It is brought up once if it is not up, and left up."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(__file__).parents[2] / "cluster" / "cluster"
BASE = "localhost/holdfast-base:bookworm"


class CommandFailed(AssertionError):
    """A `cluster` command exited with an error."""


def cluster(*words: str, check: bool = True, timeout: float = 600, stdin: str | None = None) -> str:
    """Runs one `cluster` command and returns its stdout; fails with its stderr."""
    done = subprocess.run([str(COMMAND), *words], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise CommandFailed(f"cluster {' '.join(words)} exited {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def eventually(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Waits until `condition()` is true and returns its value. A command or a connection may fail now and then."""
    deadline = time.monotonic() + timeout
    while True:
        trouble: object = ""
        try:
            if value := condition():
                return value
        except (CommandFailed, OSError) as error:
            trouble = error
        assert time.monotonic() < deadline, f"not within {timeout} s {trouble}"
        time.sleep(0.3)


@pytest.fixture(scope="session")
def up() -> None:
    cluster("up", timeout=3000)


class Namespace:
    """A namespace of its own for one test."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *words: str, check: bool = True, stdin: str | None = None) -> str:
        return cluster("kubectl", "-n", self.name, *words, check=check, stdin=stdin)

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def run(self, name: str, pod_spec: dict[str, Any], ready: bool = True, **meta: Any) -> None:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **meta}, "spec": pod_spec}
        # The account that pods run under is made a moment after their namespace.
        eventually(lambda: self.kubectl("get", "serviceaccount", "default", "-o", "name", check=False))
        self.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
        if ready:
            self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")

    def python(self, pod: str, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(COMMAND), "kubectl", "-n", self.name, "exec", pod, *words, "--", "python3", "-c", code]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def namespace(up: None, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    name = "cluster-test-" + request.node.originalname.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    cluster("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait")
    cluster("kubectl", "create", "namespace", name)
    yield Namespace(name)
    cluster("kubectl", "-n", name, "delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
    cluster("kubectl", "delete", "namespace", name, "--wait=false")


def sleeper(**spec: Any) -> dict[str, Any]:
    """A pod spec that stays up and runs nothing."""
    container = {"name": "main", "image": BASE, "command": ["sleep", "infinity"], **spec.pop("container", {})}
    return {"terminationGracePeriodSeconds": 0, "containers": [container], **spec}
