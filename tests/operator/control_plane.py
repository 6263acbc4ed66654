"""A real API server of the tests' own, with etcd and without nodes: no other operator is in the way, and it may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from holdfast_cluster.build import component
from holdfast_cluster.config import paths_from_environment
from ports import free_port

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds/trainingjobs.holdfast.dev.yaml"
ADMIN, OPERATOR = "admin-token", "operator-token"  # of servers that live for a test, on loopback
OPERATOR_USER = "holdfast-operator"


def missing() -> str:
    """What is not there to run it, or nothing."""
    wanted = [component(paths_from_environment(), "kube-apiserver"), Path(shutil.which("etcd") or "etcd")]
    absent = [w.name for w in wanted if not w.is_absolute() or not w.exists()]
    return f"no {', '.join(absent)}: run `cluster/cluster prepare`" if absent else ""


class ControlPlane:
    """etcd and an API server with two users: an administrator, and one with no permissions but those given to it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, dict[str, subprocess.Popen[bytes]]()
        self._etcd, self._peer, self._port = free_port(), free_port(), free_port()
        self._programs = component(paths_from_environment(), "kube-apiserver").parent
        tokens = [f'{ADMIN},admin,1,"system:masters"', f"{OPERATOR},{OPERATOR_USER},2"]
        (folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        key = ["openssl", "genrsa", "-out", folder / "sa.key", "2048"]
        subprocess.run(key, check=True, capture_output=True)

    def start(self) -> None:
        """Both, and the CRD."""
        url, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd", shutil.which("etcd") or "etcd", f"--data-dir={self._folder}/etcd", "--unsafe-no-fsync",
            f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        )  # fmt: skip
        self.start_api()
        self.kubectl("apply", "--server-side", "--validate=strict", "-f", str(CRD))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/trainingjobs.holdfast.dev")

    def start_api(self) -> None:
        """The API server, and wait until it answers."""
        key = self._folder / "sa.key"
        self._run(
            "api", self._programs / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--secure-port={self._port}", "--bind-address=127.0.0.1", f"--cert-dir={self._folder}/certs",
            f"--token-auth-file={self._folder}/tokens.csv", "--service-account-issuer=https://test",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.99.0.0/24",
        )  # fmt: skip
        end = time.monotonic() + 60
        while not self._ready():
            assert time.monotonic() < end, (self._folder / "api.log").read_text()[-3000:]
            time.sleep(0.3)

    def kill_api(self) -> None:
        """The API server dies at once."""
        self._kill("api")

    def stop(self) -> None:
        """Both die."""
        for name in list(self._processes):
            self._kill(name)

    def kubeconfig(self, token: str) -> Path:
        """For one of the users."""
        file = self._folder / f"{token}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": f"https://127.0.0.1:{self._port}", "insecure-skip-tls-verify": True}}
            ],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        file.write_text(json.dumps(config))
        return file

    def kubectl(self, *words: str, stdin: object = None) -> str:
        """As administrator; fails with what it said."""
        done = self._kubectl(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *words: str) -> Any:
        """Objects as JSON."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def _ready(self) -> bool:
        return self._kubectl("get", "--raw", "/readyz").returncode == 0

    def _kubectl(self, *words: str, stdin: object = None) -> subprocess.CompletedProcess[str]:
        text = None if stdin is None else json.dumps(stdin)
        command = [self._programs / "kubectl", f"--kubeconfig={self.kubeconfig(ADMIN)}", "--request-timeout=20s", *words]
        env = os.environ | {"HOME": str(self._folder)}
        return subprocess.run(command, capture_output=True, text=True, check=False, input=text, env=env, timeout=60)

    def _run(self, name: str, *command: str | Path) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(10)
