"""The status of a TrainingJob: what users read, made from what the planner remembers, and back again. Pure.

`status.internal` holds the planner's memory whole and exactly, as one line of JSON, so that an operator that starts anew goes
on from there; all other fields are made from it for people and scripts, and never read back.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast_core import wire
from holdfast_core.messages import MEMORY, PEERS
from holdfast_core.planner import Avoided, Condition, Protection, Recovery, Status
from holdfast_core.planner.reasons import PODS_READY

from . import names
from .spec import JobSpec

ACCEPTED = "Accepted"  # the operator's own condition, beside the planner's


@dataclass(frozen=True)
class Problem:
    """Why a job can't be carried out as it is: an invalid spec, or pods that the API server refuses."""

    reason: str
    message: str


@dataclass(frozen=True)
class Record:
    """All that the operator remembers of a job. `slot_bytes` is the size that its arenas grew to, for the next pods;
    `world_size` is fixed by the first pass (0: not yet)."""

    planner: Status = field(default_factory=Status)
    slot_bytes: int = 0
    world_size: int = 0

    def steady(self) -> Record:
        """Without what changes with each step, and may be written a little later."""
        found = self.planner.protection
        protection = replace(found, step=-1, message="") if found else None
        planner = replace(self.planner, step=-1, reached=-1, goodput=None, checkpoints={}, ready=0, protection=protection)
        return replace(self, planner=planner)


def restore(status: Mapping[str, Any]) -> Record:
    """The record in a resource's status, or a fresh one; raises wire.WireError if it is not readable."""
    internal = status.get("internal")
    return wire.loads(Record, str(internal)) if internal else Record()


def document(record: Record, spec: JobSpec, problem: Problem | None, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The whole status of the resource. `before` is the present one: transition times of our own condition come from it."""
    status, generation = record.planner, spec.generation
    conditions = [_condition(c, generation) for c in status.conditions]
    conditions.append(_accepted(problem, generation, before, now))
    made = {
        "phase": status.phase,
        "message": _message(status, problem),
        "observedGeneration": generation,
        "attempt": status.attempt,
        "stage": status.stage,
        "step": status.step if status.step >= 0 else None,
        "saved": _saved(status),
        "ready": f"{status.ready}/{spec.job.replicas}",
        "readyPods": status.ready,
        "replicas": spec.job.replicas,
        "spares": f"{status.spares_ready}/{spec.job.spares}" if spec.job.spares or status.spares else None,
        "selector": f"{names.LABEL_UID}={spec.job.uid}",
        "restarts": _restarts(status),
        "checkpoints": {n: {"step": c.step, "time": iso(c.time)} for n, c in sorted(status.checkpoints.items())},
        "protection": _protection(status.protection) if status.protection else None,
        "avoidedNodes": [_avoided(a) for a in status.avoided] or None,
        "snapshots": _snapshots(status),
        "recoveries": status.recoveries,
        "lastRecovery": _recovery(status.last_recovery) if status.last_recovery else None,
        "goodput": status.goodput,
        "startTime": iso(status.first_step_at) if status.first_step_at else None,
        "completionTime": iso(status.completed_at) if status.completed_at else None,
        "conditions": sorted(conditions, key=lambda c: str(c["type"])),
        "internal": wire.dumps(record).decode(),
    }
    return {k: v for k, v in made.items() if v is not None}


def refused(problem: Problem, generation: int, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The present status with nothing changed but that the spec (or the status) can't be used."""
    others = [c for c in before.get("conditions", []) if c.get("type") != ACCEPTED]
    conditions = [*others, _accepted(problem, generation, before, now)]
    return {
        "phase": "Pending",
        **before,
        "message": f"{problem.reason}: {problem.message}",
        "conditions": sorted(conditions, key=lambda c: str(c["type"])),
    }


def iso(time: float) -> str:
    """RFC 3339 in UTC, to the second, as Kubernetes writes times."""
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(condition: Condition, generation: int) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": "True" if condition.status else "False",
        "reason": condition.reason or "Unknown",
        "message": condition.message,
        "lastTransitionTime": iso(condition.since),
        "observedGeneration": generation,
    }


def _accepted(problem: Problem | None, generation: int, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    ok = problem is None
    old: Mapping[str, Any] = next((c for c in before.get("conditions", []) if c.get("type") == ACCEPTED), {})
    state = "True" if ok else "False"
    return {
        "type": ACCEPTED,
        "status": state,
        "reason": problem.reason if problem else "Valid",
        "message": problem.message if problem else "the job can be carried out as it is written",
        "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == state else iso(now),
        "observedGeneration": generation,
    }


def _message(status: Status, problem: Problem | None) -> str:
    """What holds the job up, where that is known; else what is being done."""
    if problem is not None:
        return f"{problem.reason}: {problem.message}"
    held_up = (c for c in status.conditions if c.type == PODS_READY and not c.status and c.reason not in ("Starting", "Ended"))
    pods = next(held_up, None) if status.stage == "gathering" else None
    return f"{pods.reason}: {pods.message}" if pods else status.message


def _saved(status: Status) -> str | None:
    """The freshest level; of equals the one that survives least, which tells most: memory, then peers."""
    if not status.checkpoints:
        return None
    order = {MEMORY: 2, PEERS: 1}
    level = max(status.checkpoints, key=lambda n: (status.checkpoints[n].step, order.get(n, 0), n))
    return f"{level}@{status.checkpoints[level].step}"


def _protection(protection: Protection) -> dict[str, Any]:
    return {"faults": protection.faults, "step": protection.step, "message": protection.message}


def _avoided(avoided: Avoided) -> dict[str, Any]:
    return {
        "node": avoided.node,
        "reason": avoided.reason,
        "count": avoided.count,
        "since": iso(avoided.since),
        "until": iso(avoided.until),
    }


def _snapshots(status: Status) -> dict[str, Any] | None:
    """How often and in which way they are taken, and why."""
    made = {"capture": status.capture} if status.capture else {}
    if status.interval is None:
        return made or None
    return {"steps": status.interval.steps, "reason": status.interval.reason, **made}


def _restarts(status: Status) -> dict[str, int]:
    counted = status.restarts
    return {
        "total": counted.process + counted.pod,
        "process": counted.process,
        "pod": counted.pod,
        "job": counted.job,
    }


def _recovery(recovery: Recovery) -> dict[str, Any]:
    return {
        "attempt": recovery.attempt,
        "reason": recovery.cause,
        "message": recovery.message,
        "level": recovery.level,
        "step": recovery.step,
        "lostSteps": recovery.lost_steps,
        "seconds": recovery.seconds,
        "time": iso(recovery.time),
        "evidence": list(recovery.evidence),
    }
