"""The loop of one TrainingJob: observe, plan (in core), write the status, act. Woken by events and streams, and by a timer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_core.planner import Emit, Inspect, Job, Observed, Plan, PodView, Policy, Send, Status, UntaintNode, plan
from holdfast_core.planner import nodes as node_failures
from holdfast_core.planner.roster import Roster
from holdfast_core.wire import WireError

from . import api, lookups, metrics, names, observe, outdated, pods, spec, status
from .agents import Links
from .api import Api, ApiError
from .apply import Applier
from .belongings import Belongings, NameTakenError
from .cache import PodCache
from .domains import Domains
from .events import EventPoster
from .inquiry import Inquiry
from .keeper import Gone, Keeper
from .lookups import Lookup
from .metrics import Metrics
from .observe import NodeHealth
from .pods import Where
from .settings import Settings
from .spec import JobSpec, SpecError
from .status import Problem, Record
from .suspects import Suspects
from .taints import Taints

log = logging.getLogger(__name__)

_GAP = 0.05  # seconds between passes, at least: many wake-ups become one
_LIST_TRIES = 5
_RELIST = 30.0  # seconds between lists of the job's pods, and between looks at a refused job; watch events may be lost
_IDLE = 60.0  # seconds between passes of an ended job
_LONGEST = 10.0  # seconds of back-off after errors
_SILENT = 1.0  # seconds without a heartbeat after which the pod's node is looked at
_MOST_LOST = 32  # pods that a new one is told to keep away from; more would make its object large
_BOOT = 5.0  # seconds that a node takes at least from a failure until it is back
_SLOW_START = 8.0  # seconds after which a pod that does not come up is looked into


@dataclass(frozen=True)
class Services:
    """What all reconcilers share."""

    api: Api
    settings: Settings
    events: EventPoster
    metrics: Metrics


class Reconciler:
    """One job, by UID. `run` ends when the job is gone."""

    def __init__(self, services: Services, namespace: str, name: str, uid: str) -> None:
        self._services, self.namespace, self.name, self.uid = services, namespace, name, uid
        self._awake = asyncio.Event()
        self.pods = PodCache()
        self.keeper = Keeper(services.api, namespace, name, uid)
        self._belongings = Belongings(services.api)
        self._links = Links(uid, self._heard)
        self._inquiry = Inquiry(self._links.inventory, self.wake)
        self._applier = Applier(services.api, services.settings, self.pods)
        self._nodes = Lookup(self._node, NodeHealth(), 2.0, self.wake)
        self._domains = Domains(self._node_labels, self.wake)
        self._taints = Taints(services.api, name, uid, services.settings.taint_nodes)
        self._warnings = Lookup(self._warning, "", 5.0, self.wake)
        self._suspects = Suspects(Policy().lost_after)
        self._listed = self._doubted = -1e9
        self._problem: Problem | None = None
        self._trouble = ""
        self._ended = -1e9

    def wake(self) -> None:
        """Look again now."""
        self._awake.set()

    async def run(self) -> None:
        """Reconcile until the job is gone."""
        failures, pause = 0, 0.0
        try:
            while True:
                await self._sleep(pause)
                try:
                    pause = await self._timed_pass()
                    failures, self._trouble = 0, ""
                except Gone:
                    await self._taints.clear()
                    log.info("%s/%s is gone", self.namespace, self.name)
                    return
                except Exception as error:  # noqa: BLE001 - whatever it was, the next pass starts from what is there
                    failures += 1
                    pause = self._failed(error, failures)
                self._ended = time.monotonic()
        finally:
            await self._close()

    async def _sleep(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._awake.wait()
        except TimeoutError:
            pass
        else:
            await asyncio.sleep(max(0.0, self._ended + _GAP - time.monotonic()))
        self._awake.clear()

    def _failed(self, error: Exception, failures: int) -> float:
        if isinstance(error, ApiError) and error.code == 409:
            log.info("%s/%s: changed by somebody else, looking again", self.namespace, self.name)
            return float(min(1.0, _GAP * 2 ** min(failures - 1, 10)))
        self._services.metrics.reconcile_errors.inc()
        level = logging.DEBUG if str(error) == self._trouble else logging.WARNING
        self._trouble = str(error)
        log.log(level, "%s/%s: pass failed: %s", self.namespace, self.name, error, exc_info=not isinstance(error, ApiError))
        return float(min(_LONGEST, 0.2 * 2 ** min(failures, 10)))

    async def _timed_pass(self) -> float:
        with self._services.metrics.reconcile_seconds.time():
            try:
                return await self._pass()
            except SpecError as error:
                return await self._refuse(Problem("InvalidSpec", str(error)))
            except NameTakenError as error:
                await self._refuse(error.problem)
                return 5.0
            except WireError as error:
                return await self._refuse(Problem("StatusUnreadable", f"{error}: restore the status, or delete the job"))
            except ApiError as error:
                if error.code not in (400, 403, 422):
                    raise
                await self._refuse(Problem("Rejected", f"the API server refuses what the job needs: {error.message}"))
                return 5.0

    async def _pass(self) -> float:
        """One pass. Raises Gone, SpecError, NameTakenError, WireError, ApiError. Returns when to look again (seconds)."""
        await self.keeper.load()
        body, record = self.keeper.body, self.keeper.record
        if "deletionTimestamp" in body["metadata"]:
            self._links.update({})
            return 5.0
        job = self._parse(body, record)
        await self._list()
        if await self._belongings.ensure(job):
            self._links.set_tls(self._belongings.tls)
        self._connect(record.planner)
        now = time.time()
        seen = self._observe(record.planner, job.job, now)
        self._suspects.update(seen.pods, now)
        planned = plan(job.job, seen, record.planner, now)
        after = Record(planned.status, self._slot_bytes(record, job), job.job.world_size)
        document = status.document(after, job, self._applier.problem, body.get("status") or {}, now)
        await self.keeper.save(after, document, now)
        self._announce(self._applier.problem)
        self._services.metrics.planned(self.namespace, self.name, record.planner, after.planner)
        self._report(record.planner, planned)
        await self._act(job, after, planned)
        await self._replace_outdated(job, after, seen)
        to_do = any(not isinstance(a, UntaintNode) for a in planned.actions)
        return _IDLE if after.planner.terminal and not to_do else planned.look_again

    def _parse(self, body: dict[str, Any], record: Record) -> JobSpec:
        job = spec.parse(body)
        if record.world_size and record.world_size != job.job.world_size:
            raise SpecError(
                "spec.workers",
                f"the job started with {record.world_size} ranks and can't go on with {job.job.world_size}: "
                "undo the change, or apply it as a new job",
            )
        return job

    async def _refuse(self, problem: Problem) -> float:
        """The job can't be carried out: say so, once, and wait for a change. What runs goes on running."""
        meta, before = self.keeper.body["metadata"], self.keeper.body.get("status") or {}
        now = time.time()
        document = status.refused(problem, int(meta.get("generation", 0)), before, now)
        if document != before:
            await self.keeper.write(document, now)
        self._announce(problem)
        self._sample(self.keeper.record.planner)
        if time.monotonic() - self._doubted >= _RELIST:
            self._doubted = time.monotonic()
            self.keeper.distrust()
        return _RELIST

    def _announce(self, problem: Problem | None) -> None:
        """A problem that is new becomes an event."""
        if problem is not None and problem != self._problem:
            log.warning("%s/%s: %s: %s", self.namespace, self.name, problem.reason, problem.message)
            identity = Job(self.namespace, self.name, self.uid, replicas=1)
            self._services.events.post(identity, Emit(problem.reason, problem.message, True))
        self._problem = problem

    async def _list(self) -> None:
        """Ask for all pods of the job, now and then. Never plan before it has worked once: a missing pod counts as gone."""
        if time.monotonic() - self._listed < _RELIST:
            return
        for _ in range(_LIST_TRIES):
            changes = self.pods.changes
            selector = f"{names.LABEL_UID}={self.uid}"
            found = await self._services.api.get(api.core(self.namespace, "pods"), labelSelector=selector)
            if self.pods.listed(found.get("items") or [], changes):
                self._listed = time.monotonic()
                self.keeper.distrust()
                return
        if self._listed < 0:
            raise ApiError(503, "PodsUnsettled", "the job's pods change faster than they can be listed: trying again")

    def _connect(self, planner: Status) -> None:
        """A stream from each pod that counts and has an address."""
        roster = Roster(planner.workers, planner.spares) if not planner.terminal else Roster((), ())
        up = [p for p in self._plain_views() if p.ip and p.phase not in ("Succeeded", "Failed")]
        self._links.update({p.name: p.ip for p in up if roster.as_worker(p) or roster.waits(p)})

    def _plain_views(self) -> list[PodView]:
        views = (observe.pod_view(p, observe.Heard(), NodeHealth(), "", 0.0) for p in self.pods.pods)
        return [v for v in views if v is not None]

    def _observe(self, planner: Status, job: Job, now: float) -> Observed:
        self._domains.settled(planner.stage not in ("new", "gathering"))
        views = (self._view(p, job, now) for p in self.pods.pods)
        return Observed(tuple(v for v in views if v is not None), self._inquiry.answer(planner))

    def _view(self, pod: Any, job: Job, now: float) -> PodView | None:
        meta, node = pod["metadata"], pod.get("spec", {}).get("nodeName", "")
        heard = self._links.heard(meta["name"])
        age = observe.age(meta, now)
        silent = heard.age > _SILENT if heard.age is not None else age > _SLOW_START
        ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        health = self._nodes.get(node) if node and silent and not ended else NodeHealth()
        slow = age > _SLOW_START and observe.starting(pod)
        note = self._warnings.get(meta["name"]) if slow else ""
        return observe.pod_view(pod, heard, health, note, now, self._domain(node, job))

    def _domain(self, node: str, job: Job) -> str:
        return self._domains.of(node, job.topology)

    def _slot_bytes(self, record: Record, job: JobSpec) -> int:
        """The size that arenas have, for the pods to come: what the user set, else what they have grown to."""
        grown = [h.agent.slot_bytes for p in self.pods.pods if (h := self._links.heard(p["metadata"]["name"])).agent]
        return job.slot_bytes or max([record.slot_bytes, *grown])

    async def _act(self, job: JobSpec, record: Record, planned: Plan) -> None:
        for action in planned.actions:
            if isinstance(action, Send):
                self._links.send(action.pod, action.command)
            elif isinstance(action, Inspect):
                self._inquiry.ask(action.pod, job.job, record.planner)
            elif isinstance(action, Emit):
                self._services.events.post(job.job, action)
        await self._applier.apply(job, record.slot_bytes, planned.actions, self._where(record.planner))
        await self._taints.apply(planned.actions)
        await self._label_spares(job, record.planner)

    def _where(self, planner: Status) -> Where:
        """Where new pods may go."""
        never = tuple(a.node for a in planner.avoided)
        now, failed = time.time(), {**self._suspects.since, **node_failures.suspects(planner, time.time())}
        doubtful = {node for node, at in failed.items() if node not in never and not self._came_back(node, now - at)}
        lost = [pods.identity(p) for p in self.pods.pods if p["spec"].get("nodeName") in doubtful]
        return Where(never, tuple(sorted(doubtful)), tuple(lost[-_MOST_LOST:]))

    def _came_back(self, node: str, failed_ago: float) -> bool:
        """Whether its kubelet has spoken since it failed: then pods may go there, so that they are not crowded elsewhere."""
        health = self._nodes.get(node)
        return bool(health.ready) and health.lease_age is not None and health.lease_age < failed_ago - _BOOT

    async def _label_spares(self, job: JobSpec, planner: Status) -> None:
        """For people who select by label; nothing depends on it."""
        taken = {job.job.spare_name(w.spare): w.index for w in planner.workers if w.spare}
        for meta in [p["metadata"] for p in self.pods.pods] if taken else []:
            index = taken.get(meta["name"])
            if index is not None and meta["labels"].get(names.LABEL_INDEX) != str(index) and "deletionTimestamp" not in meta:
                with contextlib.suppress(ApiError):
                    await self._applier.label(job, meta["name"], index)

    async def _replace_outdated(self, job: JobSpec, record: Record, seen: Observed) -> None:
        if not record.planner.terminal:
            roster = Roster(record.planner.workers, record.planner.spares)
            late = outdated.replaceable(seen.pods, self.pods.pods, roster, job.fingerprint)
            await self._applier.delete(job, late)

    def _report(self, before: Status, planned: Plan) -> None:
        after = planned.status
        if (before.stage, before.attempt) != (after.stage, after.attempt):
            log.info("%s/%s: attempt %d %s: %s", self.namespace, self.name, after.attempt, after.stage, planned.reason)
        self._sample(after)

    def _sample(self, planner: Status) -> None:
        sample = metrics.sample(self.namespace, self.name, planner, self._links.connected())
        self._services.metrics.sample(self.uid, sample)

    def _heard(self, urgent: bool) -> None:
        """A sidecar said something: look at once if it calls for a decision, or if the first step is awaited."""
        if urgent or self.keeper.record.planner.running_since is None:
            self.wake()

    async def _node(self, name: str) -> NodeHealth:
        return await lookups.node_health(self._services.api, name)

    async def _node_labels(self, name: str) -> Mapping[str, str]:
        return await lookups.node_labels(self._services.api, name)

    async def _warning(self, pod: str) -> str:
        return await lookups.pod_warning(self._services.api, self.namespace, pod)

    async def _close(self) -> None:
        self._services.metrics.forget(self.uid)
        await asyncio.gather(
            self._links.close(), self._inquiry.close(), self._nodes.close(), self._domains.close(), self._warnings.close(),
            return_exceptions=True,
        )  # fmt: skip
