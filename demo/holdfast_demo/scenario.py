"""The demo's faults in order: how each is injected, what may serve the recovery, and what is mended afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import faults, measure
from .faults import Scene
from .kube import Object
from .measure import NONE, Before, Outcome
from .waiting import wait_for


@dataclass(frozen=True)
class Injected:
    """A fault that has happened: when, what to say about it, and how it is mended once training goes on."""

    at: float
    note: str = ""
    mend: Callable[[], None] | None = None


@dataclass(frozen=True)
class Fault:
    """One entry of the demo. `floor`: levels that this fault can't touch. `local`: needs the local cluster, and why."""

    kind: str
    inject: Callable[[Scene], Injected]
    levels: tuple[str, ...]
    floor: tuple[str, ...]
    limit: float
    local: str = ""


def everything(scene: Scene, fault: Fault, before: Before) -> Outcome:
    """Inject, wait, measure, mend, judge. Raises WaitTimeout when training does not come back in time."""
    injected = fault.inject(scene)
    if NONE in fault.levels:
        outcome = measure.uninterrupted(scene.job, fault.kind, before, injected.at, fault.limit)
    else:
        outcome = measure.recovery(scene.job, fault.kind, before, injected.at, fault.limit)
    if injected.mend is not None:
        injected.mend()
    problem = measure.judge(outcome, before, fault.levels, fault.floor)
    note = ", ".join(filter(None, (outcome.note, injected.note)))
    return replace(outcome, note=note, problem=problem)


def _sigkill(scene: Scene) -> Injected:
    return Injected(faults.kill_rank(scene, 1))


def _segfault(scene: Scene) -> Injected:
    return Injected(faults.segfault(scene, 2))


def _sidecar(scene: Scene) -> Injected:
    restarts = _sidecar_restarts(scene)
    at = faults.kill_sidecar(scene, 1)
    return Injected(at, mend=lambda: _await_sidecar(scene, restarts))


def _sidecar_restarts(scene: Scene) -> int:
    return int(_sidecar_status(scene).get("restartCount", 0))


def _sidecar_status(scene: Scene) -> Object:
    found: list[Object] = scene.job.need_pod(1)["status"].get("initContainerStatuses", [])
    return next((s for s in found if s["name"] == faults.SIDECAR), {})


def _await_sidecar(scene: Scene, restarts: int) -> None:
    """Back means: restarted, and steps are committed to memory again, for which every sidecar is needed."""
    wait_for(lambda: _sidecar_restarts(scene) > restarts and _sidecar_status(scene).get("ready"), 60, "the sidecar to be back")
    saved, start = scene.job.checkpoint("memory"), time.time()
    wait_for(lambda: scene.job.checkpoint("memory") > saved, 60, "saves to memory after the sidecar's return")
    scene.job.wait_steps(5, 60, start)


def _pod(scene: Scene) -> Injected:
    return Injected(faults.delete_pod(scene, 2))


def _node(scene: Scene) -> Injected:
    node = faults.choose_node(scene)
    return Injected(faults.power_off(scene, node), node, mend=lambda: faults.power_on(scene, node))


def _operator(scene: Scene) -> Injected:
    at, stage = faults.kill_operator_in_recovery(scene, 1)
    return Injected(at, f"operator died while {stage}", mend=lambda: faults.operator_ready(scene))


def _all_pods(scene: Scene) -> Injected:
    scene.cluster.storage("off")
    return Injected(faults.delete_all_pods(scene), "PVC unavailable", mend=lambda: scene.cluster.storage("on"))


_POWER = "the power of a user's nodes is not ours to cut"
_PIDS = "the processes of a user's nodes are out of reach"
_DISK = "a user's storage is not ours to break"

FAULTS = (
    Fault("trainer process killed", _sigkill, ("memory",), ("memory",), 60),
    Fault("trainer segfaults", _segfault, ("memory",), ("memory",), 60),
    Fault("sidecar container killed", _sidecar, (NONE,), ("memory",), 60, _PIDS),
    Fault("pod deleted", _pod, ("peers", "pvc"), ("memory", "peers", "pvc", "s3"), 120),
    Fault("node powered off", _node, ("peers",), ("peers", "pvc", "s3"), 180, _POWER),
    Fault("operator killed in recovery", _operator, ("memory",), ("memory",), 120),
    Fault("all pods deleted, no PVC", _all_pods, ("s3",), ("s3",), 180, _DISK),
)
