"""The Kubernetes API over asyncio: the few calls that the operator makes, each with a timeout, plain dicts in and out.

Credentials (service account with its rotating token, or any kubeconfig) come from the `kubernetes` client; its generated
models are left out, because they drop fields that they do not know and a pod template must pass through unchanged.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes import client, config

from . import names

Body = dict[str, Any]
_SLOW = 1.5  # seconds
log = logging.getLogger(__name__)
_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=3)


class ApiError(Exception):
    """The API server refused (`code` is the HTTP status) or could not be reached (`code` 0)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{reason or code}: {message}")
        self.code, self.reason, self.message = code, reason, message


def load_configuration(kubeconfig: str | None = None) -> Any:
    """Credentials of the pod's service account, else of a kubeconfig (the current one); raises config.ConfigException."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


def tls_context(configuration: Any) -> ssl.SSLContext:
    """How to speak TLS with the API server."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Api:
    """A session with the API server. Errors are `ApiError`, whatever went wrong."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._host = str(configuration.host).rstrip("/")
        context = tls_context(configuration) if self._host.startswith("https") else False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=16), timeout=_TIMEOUT, trust_env=True
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, path: str, **query: str) -> Body:
        """Read one object, or a list of them."""
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: Body) -> Body:
        """Create an object in a collection; 409 if it exists."""
        return await self._request("POST", path, body)

    async def replace(self, path: str, body: Body) -> Body:
        """Write an object; with `metadata.resourceVersion` in it, 409 if it has changed since."""
        return await self._request("PUT", path, body)

    async def patch(self, path: str, body: Body) -> Body:
        """Merge-patch an object."""
        return await self._request("PATCH", path, body, content="application/merge-patch+json")

    async def delete(self, path: str, uid: str | None = None, grace: int | None = None) -> None:
        """Delete an object, this very one if `uid` is given. Gone already is fine."""
        options: Body = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self._request("DELETE", path, options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def _request(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> Body:
        headers = {"Accept": "application/json", "Content-Type": content}
        auth = self._configuration.auth_settings().get("BearerToken")
        if auth and auth["value"]:
            headers["Authorization"] = auth["value"]
        name, started = getattr(self._configuration, "tls_server_name", None), time.monotonic()
        try:
            async with self._session.request(
                method, self._host + path, json=body, params=query, headers=headers, server_hostname=name
            ) as answer:
                data = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            if (seconds := time.monotonic() - started) > _SLOW:
                log.warning("the API server took %.1f s for %s %s", seconds, method, path)
        if status >= 400:
            details = data if isinstance(data, dict) else {}
            raise ApiError(status, str(details.get("reason", "")), str(details.get("message", f"HTTP {status}")))
        return data if isinstance(data, dict) else {}


def core(namespace: str, plural: str, name: str = "") -> str:
    """Path of a namespaced object of the core group, or of the collection."""
    return f"/api/v1/namespaces/{quote(namespace)}/{plural}" + (f"/{quote(name)}" if name else "")


def node(name: str) -> str:
    """Path of a node."""
    return f"/api/v1/nodes/{quote(name)}"


def node_lease(name: str) -> str:
    """Path of the lease that a node's kubelet renews."""
    return f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{quote(name)}"


def job(namespace: str, name: str) -> str:
    """Path of a TrainingJob."""
    return f"/apis/{names.API_VERSION}/namespaces/{quote(namespace)}/{names.PLURAL}/{quote(name)}"
