"""A small client of the cluster's API server: read, apply, nothing else. kubectl costs a third of a second a call."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from holdfast_cluster.config import ClusterError

_PLURALS = {
    "Service": "services",
    "PersistentVolume": "persistentvolumes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "ClusterRoleBinding": "clusterrolebindings",
}


class Api:
    """Talks to the server of a kubeconfig written by `pki`."""

    def __init__(self, kubeconfig: Path, timeout: float = 5.0) -> None:
        try:
            config = json.loads(kubeconfig.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ClusterError("the cluster is not up: run `cluster up`") from None
        cluster = config["clusters"][0]["cluster"]
        self._url = str(cluster["server"])
        self._token = str(config["users"][0]["user"]["token"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        # No proxy of the environment: the server is on this machine.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)]
        self._opener = urllib.request.build_opener(*handlers)
        self._timeout = timeout

    def request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """One call; raises ClusterError with the server's own words."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        request = urllib.request.Request(self._url + path, data=data, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise ClusterError(f"the API server refused {method} {path}: {error.read().decode()[:500]}") from None
        except OSError as error:
            raise ClusterError(f"the API server does not answer ({error}): run `cluster status`") from None
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def get(self, path: str) -> Any:
        """The decoded answer to a GET."""
        return self.request("GET", path)

    def apply(self, manifest: dict[str, Any]) -> None:
        """Server-side apply of one object."""
        meta = manifest["metadata"]
        group = manifest["apiVersion"]
        root = f"/apis/{group}" if "/" in group else f"/api/{group}"
        where = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        path = f"{root}{where}/{_PLURALS[manifest['kind']]}/{meta['name']}?fieldManager=holdfast-cluster&force=true"
        self.request("PATCH", path, manifest, "application/apply-patch+yaml")

    def ready(self) -> bool:
        """Whether the server answers and says that it is ready."""
        try:
            return bool(self.get("/readyz") == "ok")
        except ClusterError:
            return False

    def nodes(self) -> dict[str, bool]:
        """{node: is it Ready}."""
        return {
            node["metadata"]["name"]: any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in node["status"].get("conditions", [])
            )
            for node in self.get("/api/v1/nodes")["items"]
        }
