"""Carrying out a plan's actions. Each is idempotent, so one that fails or is lost is simply ordered again by the next pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_core.planner import Action, CreatePod, CreateSpare, DeletePod, EndPod

from . import api, names, pods
from .api import Api, ApiError
from .cache import PodCache
from .pods import ANYWHERE, Where
from .settings import Settings
from .spec import JobSpec
from .status import Problem

log = logging.getLogger(__name__)
_FIRST, _LONGEST = 1.0, 30.0  # seconds between tries of what the API server refuses


@dataclass
class _Refusal:
    """A pod that the API server would not take."""

    problem: Problem
    delay: float
    again: float


class Applier:
    """The actions on pods of one job. `problem` is why its pods can't be created, None when they can."""

    def __init__(self, client: Api, settings: Settings, cache: PodCache) -> None:
        self._api, self._settings, self._cache = client, settings, cache
        self._refusals: dict[str, _Refusal] = {}
        self._fingerprint = ""

    @property
    def problem(self) -> Problem | None:
        """The API server's refusal, if there is one."""
        return next((r.problem for r in self._refusals.values()), None)

    async def apply(self, spec: JobSpec, slot_bytes: int, actions: Sequence[Action], where: Where = ANYWHERE) -> None:
        """Do what concerns pods, side by side; raises the first ApiError that is not about the pod itself."""
        if spec.fingerprint != self._fingerprint:
            self._fingerprint, self._refusals = spec.fingerprint, {}
        wanted = {_name(spec, a) for a in actions if isinstance(a, CreatePod | CreateSpare)}
        self._refusals = {n: r for n, r in self._refusals.items() if n in wanted}
        results = await asyncio.gather(*(self._do(spec, slot_bytes, a, where) for a in actions), return_exceptions=True)
        errors = [r for r in results if isinstance(r, BaseException)]
        if errors:
            raise errors[0]

    async def label(self, spec: JobSpec, name: str, index: int) -> None:
        """Show on a spare which index it took; raises ApiError."""
        await self._api.patch(
            api.core(spec.job.namespace, "pods", name), {"metadata": {"labels": {names.LABEL_INDEX: str(index)}}}
        )

    async def _do(self, spec: JobSpec, slot_bytes: int, action: Action, where: Where) -> None:
        if isinstance(action, CreatePod | CreateSpare):
            await self._create(spec, slot_bytes, action, where)
        elif isinstance(action, DeletePod):
            await self._delete(spec, action)
        elif isinstance(action, EndPod):
            await self._end(spec, action.name)

    async def delete(self, spec: JobSpec, actions: Sequence[DeletePod]) -> None:
        """Delete pods; raises ApiError."""
        for action in actions:
            await self._delete(spec, action)

    async def _delete(self, spec: JobSpec, action: DeletePod) -> None:
        log.info("%s/%s: deleting pod %s: %s", spec.job.namespace, spec.job.name, action.name, action.reason)
        path = api.core(spec.job.namespace, "pods", action.name)
        await self._api.delete(path, grace=0 if action.force else None)

    async def _create(self, spec: JobSpec, slot_bytes: int, action: CreatePod | CreateSpare, where: Where) -> None:
        name = _name(spec, action)
        refusal = self._refusals.get(name)
        if refusal and time.monotonic() < refusal.again:
            return
        body = self._body(spec, slot_bytes, action, where)
        body["metadata"]["annotations"][names.ANNOTATION_MADE] = f"{time.time():.3f}"
        self._cache.expect(name)
        try:
            made = await self._api.create(api.core(spec.job.namespace, "pods"), body)
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists":
                return  # the watch will show it
            if error.code in (400, 403, 409, 422):
                self._refuse(name, error, refusal)
                return
            raise
        log.info("%s/%s: created pod %s", spec.job.namespace, spec.job.name, name)
        self._refusals.pop(name, None)
        self._cache.made(made)

    def _body(self, spec: JobSpec, slot_bytes: int, action: CreatePod | CreateSpare, where: Where) -> dict[str, Any]:
        if isinstance(action, CreateSpare):
            return pods.build_spare(spec, action.number, slot_bytes, self._settings, where)
        return pods.build(spec, action.index, action.incarnation, slot_bytes, self._settings, where)

    def _refuse(self, name: str, error: ApiError, before: _Refusal | None) -> None:
        delay = min(_LONGEST, before.delay * 2) if before else _FIRST
        problem = Problem("PodRejected", f"the API server refuses pod {name}: {error.message}")
        self._refusals[name] = _Refusal(problem, delay, time.monotonic() + delay)

    async def _end(self, spec: JobSpec, name: str) -> None:
        """The kubelet stops a pod whose deadline has passed; object and logs stay."""
        try:
            await self._api.patch(api.core(spec.job.namespace, "pods", name), {"spec": {"activeDeadlineSeconds": 1}})
        except ApiError as error:
            if error.code != 404:
                raise


def _name(spec: JobSpec, action: CreatePod | CreateSpare) -> str:
    if isinstance(action, CreateSpare):
        return spec.job.spare_name(action.number)
    return spec.job.pod_name(action.index, action.incarnation)
