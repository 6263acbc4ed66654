"""Takes snapshots: plans one, copies what has no fence, and lets the rest be copied now or behind the next step.

A snapshot that is under way is settled before the next one begins. Optimizers announce their steps (a hook of torch, called for
every optimizer of the process): what a step would change is copied by then, by the stepping thread itself if need be.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from holdfast_core import arena, manifest
from holdfast_core.arena import ArenaError
from holdfast_core.checksum import CHUNK
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from .._state import rng
from .._state.mapping import Mapped
from .._state.replicas import ReplicaSet
from .._state.sources import Source
from ..errors import SnapshotSkipped, UnsupportedValue
from . import plan as plans
from .device import Pinned
from .job import Goal, Job
from .lane import Lane
from .plan import FROZEN, Plan, storage
from .report import CaptureReport, SealStats
from .settings import Settings
from .slot import Content, Identity, Written, choose
from .team import fork
from .threads import Crew
from .tuner import Tuner, Way, ways_for
from .verify import Verifier

LATE = -3  # the lane of what was encoded anew for this snapshot
_WAITED = 50e-6  # seconds: less is the price of asking
_LAST_SECONDS = 5.0  # for copy threads to end with the process: what they have in hand takes milliseconds
_RNG = "rng"
_COPY_ENGINE, _UNKNOWN = "the copy engine of the device works beside it", "not measured yet"


class Place(Protocol):
    """Where snapshots go: the part of `Home` that captures need."""

    @property
    def identity(self) -> Identity:
        """Whose snapshots they are."""

    def target(self, slot_bytes: int) -> Mapped:
        """An arena with slots of this size; raises SnapshotSkipped."""

    def sealed(self, target: Mapped, written: Written, step: int, stats: SealStats) -> None:
        """A slot was published (told from any thread)."""

    def skipped(self, step: int, reason: str) -> None:
        """There will be no snapshot of this step (told from any thread)."""


class Engine:
    """One for each Checkpointer. Not for use by several threads at once, apart from `fence`."""

    def __init__(self, sources: Mapping[str, Source], place: Place, say: Callable[[str, str], None]) -> None:
        self._sources, self._place, self._say = sources, place, say
        self._settings = Settings.from_environment()
        self._plan: Plan | None = None
        self._job: Job | None = None
        self._tuner: Tuner | None = None
        self._target: Mapped | None = None
        self._untrusted: set[int] = set()
        self._frozen_in: dict[tuple[str, int], tuple[list[int], int]] = {}
        self._crew, self._background = Crew("holdfast-copy", False), Crew("holdfast-lazy", True)
        self._pinned = Pinned()
        self._verifier = Verifier() if self._settings.verify else None
        self._planned = False
        self.replicas: ReplicaSet | None = None  # set after the restore, when rank and world size are known
        self._began = 0.0
        self._sync_seconds = 0.0
        self._process = os.getpid()
        self._counts = threading.Lock()
        self._report: dict[str, Any] = {}
        self._hook: Any = None
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[Plan, list[int]]] = weakref.WeakKeyDictionary()

    # --- one snapshot

    def is_due(self, step: int) -> bool:
        """Whether the interval asks for a snapshot of this step."""
        every = self._settings.every or (arena.every(self._target.buf) if self._target is not None else 0)
        return arena.is_due(every, step)

    def snapshot(self, step: int) -> str:
        """Take or start one; why there is none, or nothing. Raises UnsupportedValue as long as none was ever planned."""
        start = time.monotonic()
        if os.getpid() != self._process:
            return "forked: this process was forked from the one that trains, and has no snapshots of its own"
        try:
            job = self._start(step, start)
        except UnsupportedValue as error:
            if not self._planned:
                raise
            problem = str(error)
        except (SnapshotSkipped, ArenaError) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - a failed save must never end training (promise I5)
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = job.problem
            self._note(return_seconds=time.monotonic() - start)
            return problem
        self._began = 0.0
        self._skip(step, problem)
        return problem

    def _start(self, step: int, start: float) -> Job:
        previous, self._began = self._began, start
        self.finish()
        if previous and self._tuner is not None:
            self._tuner.measured(start - previous, self._sync_seconds)
        plan = self._current_plan()
        late = plans.Late(plan.encoder)
        tree = plan.tree(late, {_RNG: rng.capture})
        late_entries = plans.place(late.specs, plan.data_bytes)
        late_sums = array("I", bytes(4 * sum(manifest.chunk_count(e.nbytes) for e in late_entries)))
        self._planned = True
        described = manifest.describe(late_entries)
        data_bytes = max(plan.data_bytes, plans.end_of(late_entries))
        sums = (plan.sums, late_sums)
        self._note(plan_seconds=time.monotonic() - start, state_bytes=data_bytes)
        size = len(plan.described) + len(described) + sum(map(len, tree)) + 8 * sum(map(len, sums)) + 1024
        content = Content(data_bytes, sums, (plan.described, described), tree)
        goal = self._open(step, plan.slot_bytes(data_bytes, size), content)
        return self._run(plan, goal, plans.lanes(late.leaves, late_entries, lambda _: LATE, late_sums), start)

    def _current_plan(self) -> Plan:
        plan = self._plan
        if plan is None or not plan.holds():
            plan = self._plan = plans.make(self._sources, self._untrusted, self.replicas)
            self._frozen_in.clear()
            self._announce()
        return plan

    def _announce(self) -> None:
        if self._hook is None:
            me = weakref.ref(self)

            def before(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
                engine = me()
                if engine is not None:
                    engine._before_step(optimizer)

            self._hook = register_optimizer_step_pre_hook(before)
            weakref.finalize(self, self._hook.remove)
            atexit.register(_drain, me)

    def _open(self, step: int, slot_bytes: int, content: Content) -> Goal:
        who = self._place.identity
        self._target = target = self._place.target(slot_bytes)
        slot = choose(target, who, step)
        arena.begin(target.buf, target.header, slot, content.data_bytes)
        return Goal(step, who, target, slot, content)

    def _run(self, plan: Plan, goal: Goal, late: plans.Lanes, start: float) -> Job:
        lanes = {**late[0], **{f: lane for f, lane in plan.lanes.items() if not self._has_frozen(f, lane, goal)}}
        device_lanes = {**late[1], **plan.device_lanes}
        copied = sum(lane.nbytes for lane in lanes.values()) + sum(lane.nbytes for lane in device_lanes.values())
        way = self._way(copied, bool(device_lanes))
        if self._verifier is not None:
            self._verifier.note(lanes.values())
        job = self._job = Job(goal, lanes, device_lanes, self._verifier.look if self._verifier else None)
        job.frozen = plan.lanes[FROZEN].versions() if FROZEN in plan.lanes else None
        job.copied, job.mode = copied, f"{way}: {self._reason()}"
        for fence, lane in lanes.items():
            lane.begin(watched=way.lazy and fence >= 0)
        self._start_device(job)
        if way.lazy:
            self._run_lazily(job, way, start)
        else:
            self._run_now(job, way)
            self._sync_seconds = job.seconds
            job.stall_seconds = time.monotonic() - start
            self._deliver(job)
        return job

    def _run_now(self, job: Job, way: Way) -> None:
        team = fork() if way.threads > 1 else None
        if team is not None and team[1] == way.threads:
            job.work(team[0])
        else:
            self._crew.submit([job.work] * (way.threads - 1))
        job.complete()

    def _run_lazily(self, job: Job, way: Way, start: float) -> None:
        """What no fence guards is copied before this returns."""
        helpers = [job.work] * (way.threads - 1)
        self._sync_seconds = 0.0
        job.fence([f for f in job.lanes if f < 0])
        job.fence_seconds = 0.0
        job.stall_seconds = time.monotonic() - start
        last: Callable[[], object] = job.work if self._verifier else lambda: self._complete(job)
        self._background.submit([*helpers, last])

    def _start_device(self, job: Job) -> None:
        if not job.device_lanes:
            return
        self._pinned.register(job.goal.target)
        for fence in sorted(job.device_lanes):
            job.device_lanes[fence].start(job.area)
        for fence in [f for f in job.device_lanes if f < 0]:
            job.device_lanes[fence].fence()

    def _way(self, nbytes: int, device: bool) -> Way:
        if self._tuner is None:
            local_world = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
            cores = max(1, len(os.sched_getaffinity(0)) // local_world)
            forced = self._settings.way
            self._tuner = (
                Tuner((forced,), "set by HOLDFAST_CAPTURE")
                if forced
                else Tuner(ways_for(cores, team[1] if (team := fork()) else 0, device), _COPY_ENGINE if device else _UNKNOWN)
            )
        way = self._tuner.choose(nbytes)
        return Way(True, way.threads) if device else way

    def _reason(self) -> str:
        return self._tuner.reason if self._tuner else ""

    # --- frozen once

    def _has_frozen(self, fence: int, lane: Lane, goal: Goal) -> bool:
        """Whether the slot still has this lane from an earlier snapshot, so that it need not be copied again."""
        if fence != FROZEN:
            return False
        key = (str(goal.target.path), goal.slot)
        known = self._frozen_in.pop(key, None)
        sequence = arena.read_slot(goal.target.buf, goal.slot).sequence
        if known is None or known != (lane.versions(), sequence):
            return False
        if self._verifier is not None and (problem := self._verifier.compare(lane)):
            self._frozen_in.clear()
            raise SnapshotSkipped(problem)
        return True

    def _remember_frozen(self, job: Job) -> None:
        if job.frozen is not None:
            goal = job.goal
            sequence = arena.read_slot(goal.target.buf, goal.slot).sequence
            self._frozen_in[str(goal.target.path), goal.slot] = (job.frozen, sequence)
            job.frozen = None  # once: later the slot may hold something else

    # --- the end of a snapshot

    def _complete(self, job: Job) -> None:
        job.complete()
        self._deliver(job)

    def _deliver(self, job: Job) -> None:
        """Tell the outcome, once."""
        if not job.claim_delivery():
            return
        goal = job.goal
        if job.written is None:
            self._untrusted.update(storage(t) for t in job.untrusted())
            self._skip(goal.step, job.problem)
            return
        stats = SealStats(job.stall_seconds, job.fence_seconds, job.seconds, job.copied, job.mode)
        with self._counts:
            self._report["snapshots"] = self._report.get("snapshots", 0) + 1
        self._note(bytes_copied=job.copied, capture_seconds=job.seconds)
        self._place.sealed(goal.target, job.written, goal.step, stats)

    def _skip(self, step: int, problem: str) -> None:
        with self._counts:
            self._report["skipped"] = self._report.get("skipped", 0) + 1
        self._say(problem, f"no snapshot of step {step}: {problem}")
        self._place.skipped(step, problem)

    def finish(self) -> bool:
        """Settle the snapshot that is under way; whether the last one was sealed."""
        job = self._job
        if job is None or os.getpid() != self._process:
            return False
        job.work()  # beside the copy threads, not after them
        self._complete(job)
        if self._plan is not None and job.written is not None:
            self._remember_frozen(job)
        if job.untrusted():
            self._plan = None
        self._job = None if job.written is None else job
        return job.written is not None

    def wait(self, timeout: float) -> bool:
        """Take part until the last snapshot is settled; whether it was sealed."""
        deadline = time.monotonic() + timeout
        job = self._job
        if job is None or os.getpid() != self._process:
            return False
        job.settled.wait(max(0.0, deadline - time.monotonic()) if not self._verifier else 0.0)
        return self.finish() if job.settled.is_set() or self._verifier else False

    def abandon(self) -> None:
        """Give the snapshot under way up, without sealing it."""
        if self._job is not None:
            self._job.stop[0] = 1

    def close(self) -> None:
        """Settle, and end the threads. The next snapshot starts them again."""
        self.finish()
        self._end_threads()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._pinned.release()

    # --- fences

    def fence(self) -> None:
        """Return when everything may be changed by hand."""
        self._fence(None)

    def _before_step(self, optimizer: Optimizer) -> None:
        self._fence(optimizer)

    def _fence(self, optimizer: Optimizer | None) -> None:
        job = self._job
        if job is None or job.settled.is_set() or os.getpid() != self._process:
            return
        everything = [*job.lanes, *job.device_lanes]
        waited = job.fence(everything if optimizer is None else self._fences_of(optimizer))
        if waited > _WAITED:
            with self._counts:
                self._report["fence_waits"] = self._report.get("fence_waits", 0) + 1
                self._report["fence_seconds"] = self._report.get("fence_seconds", 0.0) + waited

    def _fences_of(self, optimizer: Optimizer) -> Iterable[int]:
        plan = self._plan
        if plan is None:
            return []
        known = self._known.get(optimizer)
        if known is None or known[0] is not plan:
            known = self._known[optimizer] = (plan, plan.fences_of(optimizer))
        return known[1]

    def drain(self) -> None:
        """At the end of the process: what was taken is sealed. A fork of the process has nothing to seal."""
        if os.getpid() == self._process:
            self.finish()
            self._end_threads()

    def _end_threads(self) -> None:
        """Once the script ends none may be left: the interpreter would end it inside of torch, whose C++ then aborts."""
        for crew in (self._crew, self._background):
            crew.end(_LAST_SECONDS)

    # --- report

    def _note(self, **values: Any) -> None:
        with self._counts:
            self._report.update(values)

    def report(self) -> CaptureReport:
        """What captures cost so far."""
        way = self._tuner.way if self._tuner else Way(False, 1)
        with self._counts:
            return CaptureReport(
                mode="lazy" if way.lazy else "sync",
                threads=way.threads,
                chunk_bytes=CHUNK,
                reason=self._reason(),
                **self._report,
            )


def _drain(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None:
        engine.drain()
