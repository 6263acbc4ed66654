"""Sees to it that a job's Secret and Service exist before its pods do, and come back if somebody deletes them."""

from __future__ import annotations

import datetime
import ssl
import time
from typing import Any

from . import api, certificates, names, objects
from .api import Api, ApiError
from .spec import JobSpec
from .status import Problem

_CHECK = 30.0  # seconds between looks


class NameTakenError(Exception):
    """An object of somebody else has the name that the job needs."""

    def __init__(self, kind: str, name: str) -> None:
        text = f"{kind} {name} exists and does not belong to this job: delete it, or give the job another name"
        super().__init__(text)
        self.problem = Problem("NameTaken", text)


class Belongings:
    """`tls` is how to speak to the job's sidecars, None until the Secret is there.

    A Secret that was deleted is made again with the same key pair as long as this operator runs: pods that are up keep the
    pair that they have. An operator that never saw it has to make a new pair; then pods that are up can't be reached until
    their kubelet has brought them the new one.
    """

    def __init__(self, client: Api) -> None:
        self._api = client
        self._files: dict[str, str] | None = None
        self._checked = -1e9
        self.tls: ssl.SSLContext | None = None

    def distrust(self) -> None:
        """Look again at the next pass."""
        self._checked = -1e9

    async def ensure(self, spec: JobSpec) -> bool:
        """Make what is missing; whether `tls` changed. Raises NameTakenError or ApiError."""
        if time.monotonic() - self._checked < _CHECK:
            return False
        changed = await self._secret(spec)
        await self._service(spec)
        self._checked = time.monotonic()
        return changed

    async def _secret(self, spec: JobSpec) -> bool:
        found = await self._find(spec, "secrets", "Secret", names.tls_secret(spec.job.name))
        files = _readable(found)
        if files is None:
            files = self._files or certificates.issue(spec.job.uid, datetime.datetime.now(datetime.UTC))
            if found is not None:
                await self._remove(spec, "secrets", found)
            await self._api.create(api.core(spec.job.namespace, "secrets"), objects.secret(spec, files))
        if files == self._files:
            return False
        self._files, self.tls = files, certificates.client_context(files)
        return True

    async def _service(self, spec: JobSpec) -> None:
        if await self._find(spec, "services", "Service", spec.job.name) is None:
            await self._api.create(api.core(spec.job.namespace, "services"), objects.service(spec))

    async def _find(self, spec: JobSpec, plural: str, kind: str, name: str) -> dict[str, Any] | None:
        """The job's own object, or None; one that an earlier job of this name left is removed."""
        try:
            body = await self._api.get(api.core(spec.job.namespace, plural, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        if objects.owned_by(body, spec.job.uid):
            return body
        if not objects.of_earlier_job(body, spec.job.name):
            raise NameTakenError(kind, name)
        await self._remove(spec, plural, body)
        return None

    async def _remove(self, spec: JobSpec, plural: str, body: dict[str, Any]) -> None:
        meta = body["metadata"]
        await self._api.delete(api.core(spec.job.namespace, plural, meta["name"]), uid=meta["uid"])


def _readable(secret: dict[str, Any] | None) -> dict[str, str] | None:
    """The key pair in a Secret, or None if there is none that can be used."""
    if secret is None:
        return None
    try:
        files = certificates.from_secret(secret.get("data") or {})
        certificates.client_context(files)
    except (ValueError, OSError):  # ssl.SSLError is an OSError
        return None
    return files
