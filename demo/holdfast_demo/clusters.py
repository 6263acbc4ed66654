"""The Kubernetes under the demo and the tests: the repository's own local one, or (CLUSTER=existing) the current context.

Whatever only a local cluster can do (cut a node's power, break the shared disk, kill by pid) says so when it is asked for.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

from .commands import ROOT, run
from .errors import DemoError
from .kube import Kube

_CLUSTER = ROOT / "cluster" / "cluster"


class Cluster:
    """One cluster. `existing` means that it is the user's, and its machines are out of reach."""

    def __init__(self, *, existing: bool | None = None) -> None:
        self.existing = os.environ.get("CLUSTER") == "existing" if existing is None else existing

    def call(self, *words: str | Path, seconds: float = 60.0, show: bool = False, check: bool = True) -> str:
        """`cluster/cluster WORDS...`; its output. Raises DemoError."""
        return run([_CLUSTER, *words], seconds=seconds, show=show, check=check)

    def is_up(self) -> bool:
        """Whether the control plane answers now."""
        if self.existing:
            return True
        return self.call("status", check=False, seconds=20) != "" and self._answers()

    def _answers(self) -> bool:
        try:
            return bool(Kube(self.kubeconfig()).request("GET", "/readyz") == "ok")
        except Exception:  # noqa: BLE001 - whatever is wrong with it: it is not up
            return False

    def kubeconfig(self) -> str:
        """Path of the kubeconfig."""
        return self.call("kubeconfig").strip()

    @cached_property
    def kube(self) -> Kube:
        """The API client."""
        return Kube(self.kubeconfig())

    def kubectl(self, *words: str, seconds: float = 60.0, check: bool = True) -> str:
        """kubectl's output."""
        return self.call("kubectl", *words, seconds=seconds, check=check)

    def helm(self, *words: str, seconds: float = 120.0, check: bool = True) -> str:
        """helm's output."""
        return self.call("helm", *words, seconds=seconds, check=check)

    def up(self) -> None:
        """Bring the local cluster up; its own progress lines are shown."""
        self.call("up", seconds=1800, show=True)

    def down(self) -> None:
        """Take the local cluster away."""
        self.call("down", seconds=180, show=True)

    def power_off(self, node: str) -> None:
        """Cut a node's power: nothing of it says goodbye."""
        self.call("power-off", node)

    def power_on(self, node: str) -> None:
        """Boot it again, with the disk it had."""
        self.call("power-on", node)

    def storage(self, action: str) -> None:
        """The shared disk: on, off (no access), full, free."""
        self.call("storage", action)

    def s3(self, action: str) -> None:
        """The S3 server: start, stop."""
        self.call("s3", action)

    def s3_access(self) -> dict[str, str]:
        """Endpoint, region, bucket, access_key and secret_key of the local S3 server."""
        found: dict[str, str] = json.loads(self.call("s3", "access"))
        return found

    def claim(self, namespace: str, name: str) -> None:
        """A bound ReadWriteMany claim on the shared disk."""
        self.call("storage", "claim", f"{namespace}/{name}")

    def build(self, tag: str, *, file: Path, context: Path, target: str = "", args: tuple[str, ...] = ()) -> str:
        """Build an image on the local base and load it into every node; what was done, in a word or two."""
        words: list[str | Path] = ["build-image", "--tag", tag, "--file", file, "--load"]
        words += ["--target", target] if target else []
        words += [word for arg in args for word in ("--build-arg", arg)]
        lines = self.call(*words, context, seconds=1200).splitlines()
        return lines[0] if lines else ""

    def prometheus(self) -> str:
        """URL of the local Prometheus, started if need be."""
        return self.call("prometheus", "start", seconds=60).strip().splitlines()[-1]

    def nodes_ready(self) -> dict[str, bool]:
        """{node: Ready}."""
        found = self.kube.request("GET", "/api/v1/nodes")["items"]
        return {
            node["metadata"]["name"]: any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
            for node in found
        }


def missing_setting(name: str, meaning: str) -> DemoError:
    """What CLUSTER=existing needs to be told."""
    return DemoError(f"CLUSTER=existing needs {name}: {meaning}")
