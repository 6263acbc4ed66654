"""A thin client of the API server: authentication from a kubeconfig, plain dictionaries in and out, bounded calls.

Paths are written by hand: the demo and the tests need a dozen of them, and custom resources are paths like all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

GROUP = "holdfast.dev/v1alpha1"
JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
_TIMEOUT = urllib3.Timeout(connect=3.0, read=10.0)

Object = dict[str, Any]

PLURALS = {
    "Namespace": "namespaces",
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "TrainingJob": "trainingjobs",
    "Pod": "pods",
    "Event": "events",
    "Service": "services",
    "Deployment": "deployments",
}
_GROUPS = {"TrainingJob": f"/apis/{GROUP}", "Deployment": "/apis/apps/v1"}


class ApiError(Exception):
    """The API server said no: `status` and its own words. `status` 0: no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message

    @property
    def passing(self) -> bool:
        """Whether it says nothing about what was asked for: a moment later the answer may be another."""
        return self.status in (0, 429) or self.status >= 500


class Kube:
    """Objects of one cluster. Safe to use from several threads."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        self._config = client.Configuration()
        config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, client_configuration=self._config
        )
        # urllib3 itself would retry three times, and so stretch every bound.
        self._pool = client.ApiClient(self._config).rest_client.pool_manager

    def request(
        self, method: str, path: str, body: object = None, content: str = JSON, query: Mapping[str, object] | None = None
    ) -> Any:
        """One call; the parsed answer, or its text where it is no JSON. Raises ApiError."""
        response = self._send(method, path, body, content, query, _TIMEOUT)
        text = response.data.decode(errors="replace")
        if response.status >= 400:
            raise ApiError(response.status, _message(text))
        return json.loads(text) if text[:1] in ("{", "[") else text

    def _send(
        self,
        method: str,
        path: str,
        body: object,
        content: str,
        query: Mapping[str, object] | None,
        timeout: urllib3.Timeout,
        stream: bool = False,
    ) -> Any:
        url = self._config.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": content, "Accept": "*/*"}
        token = self._config.get_api_key_with_prefix("BearerToken") or self._config.get_api_key_with_prefix("authorization")
        if token:
            headers["Authorization"] = token
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._pool.request(
                method, url, body=data, headers=headers, timeout=timeout, retries=False, preload_content=not stream
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, f"the API server does not answer: {error}") from error

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object; raises ApiError (404 if it is not there)."""
        found: Object = self.request("GET", f"{path_of(kind, namespace)}/{name}")
        return found

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        try:
            return self.get(kind, namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str = "", selector: str = "", fields: str = "") -> list[Object]:
        """All objects of a kind, in one namespace or (empty) all."""
        query = {k: v for k, v in (("labelSelector", selector), ("fieldSelector", fields)) if v}
        found: list[Object] = self.request("GET", path_of(kind, namespace), query=query)["items"]
        return found

    def apply(self, manifest: Object) -> Object:
        """Server-side apply: creates or brings up to date."""
        meta = manifest["metadata"]
        path = f"{path_of(manifest['kind'], meta.get('namespace', ''))}/{meta['name']}"
        query = {"fieldManager": "holdfast-demo", "force": "true"}
        applied: Object = self.request("PATCH", path, manifest, APPLY, query)
        return applied

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Creates; raises ApiError (409 if it exists). `dry_run`: the server's checks only."""
        query = {"dryRun": "All"} if dry_run else None
        path = path_of(manifest["kind"], manifest["metadata"].get("namespace", ""))
        created: Object = self.request("POST", path, manifest, query=query)
        return created

    def patch(self, kind: str, namespace: str, name: str, change: Object, sub: str = "") -> Object:
        """Merge patch, of a subresource if `sub` (with its slash) is given."""
        patched: Object = self.request("PATCH", f"{path_of(kind, namespace)}/{name}{sub}", change, MERGE)
        return patched

    def delete(self, kind: str, namespace: str, name: str, grace: int | None = None) -> None:
        """Deletes if it is there. `grace` 0 is a force delete; dependants go in the background."""
        body: Object = {"propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self.request("DELETE", f"{path_of(kind, namespace)}/{name}", body)
        except ApiError as error:
            if error.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str, *, previous: bool = False, tail: int = 2000) -> str:
        """A container's log so far; the reason in brackets where there is none."""
        query = {"container": container, "tailLines": tail, **({"previous": "true"} if previous else {})}
        try:
            return str(self._text(f"{path_of('Pod', namespace)}/{pod}/log", query))
        except ApiError as error:
            return f"[no log: {error.message}]"

    def _text(self, path: str, query: Mapping[str, object]) -> str:
        response = self._send("GET", path, None, JSON, query, _TIMEOUT)
        text: str = response.data.decode(errors="replace")
        if response.status >= 400:
            raise ApiError(response.status, _message(text))
        return text

    def follow(self, namespace: str, pod: str, container: str, since: str, read_seconds: float) -> Iterator[str]:
        """Lines of a log as they come, each with its RFC 3339 time first; ends when the log or its node does."""
        query = {"container": container, "follow": "true", "timestamps": "true", **({"sinceTime": since} if since else {})}
        timeout = urllib3.Timeout(connect=3.0, read=read_seconds)
        path = f"{path_of('Pod', namespace)}/{pod}/log"
        response = self._send("GET", path, None, JSON, query, timeout, stream=True)
        try:
            if response.status < 400:
                yield from _lines(response)
        except urllib3.exceptions.HTTPError:
            return
        finally:
            response.close()


def path_of(kind: str, namespace: str) -> str:
    """The collection's path."""
    where = f"/namespaces/{namespace}" if namespace and kind != "Namespace" else ""
    return f"{_GROUPS.get(kind, '/api/v1')}{where}/{PLURALS[kind]}"


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    for piece in response.stream(1 << 16):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        return text[:500]
