"""Conditions: what a user reads in `kubectl describe`. Each names its reason and what to do."""

from __future__ import annotations

from . import protected, reasons
from .passing import Pass
from .types import Condition, PodView


def update(work: Pass) -> None:
    """Recompute all conditions; a change of one that went bad, or came back, is an event too."""
    old = {c.type: c for c in work.status.conditions}
    fresh = [
        c
        for c in (_pods(work), _training(work), _stores(work), _memory(work), protected.condition(work), *_end(work))
        if c is not None
    ]
    kept = []
    for condition in fresh:
        before = old.get(condition.type)
        same = before is not None and before.status == condition.status
        since = before.since if same and before is not None else work.now
        kept.append(Condition(condition.type, condition.status, condition.reason, condition.message, since))
        _announce(work, before, condition)
    work.set(conditions=tuple(kept))


def _announce(work: Pass, before: Condition | None, now: Condition) -> None:
    """Stores, memory and pods speak up when they break or heal; the stages have events of their own."""
    if now.type not in (reasons.STORES_HEALTHY, reasons.MEMORY_FITS, reasons.PODS_READY, reasons.PROTECTED):
        return
    key = (now.status, now.reason)
    if before is None:
        changed = not now.status and now.reason not in _QUIET
    else:
        changed = (before.status, before.reason) != key and now.reason not in _QUIET
    if changed and not (now.type == reasons.PODS_READY and now.status):
        work.emit(now.reason, now.message, warning=not now.status)


_QUIET = {"Starting", "Ended", "Unknown", "SinglePod", "Replicating"}


def _pods(work: Pass) -> Condition:
    wanted = work.job.replicas
    if work.status.terminal:
        return Condition(reasons.PODS_READY, False, "Ended", "the job has ended")
    waiting = [p for p in work.observed.pods if p.waiting and not work.is_stale(p) and not work.waits(p)]
    if waiting:
        return Condition(reasons.PODS_READY, False, _reason(waiting[0]), _some(waiting))
    ready = sum(1 for p in work.current if p.fresh(3.0) and p.agent is not None and p.agent.launcher)
    if ready == wanted:
        return Condition(reasons.PODS_READY, True, "AllReady", f"{wanted} of {wanted} pods are ready")
    return Condition(reasons.PODS_READY, False, "Starting", f"{ready} of {wanted} pods are ready")


def _reason(pod: PodView) -> str:
    return pod.waiting.split(":", 1)[0].strip() or "Waiting"


def _some(pods: list[PodView]) -> str:
    lines = [f"pod {p.name}: {p.waiting}" for p in pods[:3]]
    return "; ".join(lines) + (f"; and {len(pods) - 3} more" if len(pods) > 3 else "")


def _training(work: Pass) -> Condition:
    status = work.status
    running = status.stage == "running" and status.running_since is not None
    if running:
        source = status.source
        origin = f"resumed from {source.level} at step {source.step}" if source else "started from scratch"
        return Condition(reasons.TRAINING, True, "Progressing", f"attempt {status.attempt} {origin}")
    reason = status.cause.reason if status.cause and not status.terminal else status.stage.capitalize()
    return Condition(reasons.TRAINING, False, reason, status.message)


def _stores(work: Pass) -> Condition | None:
    if not work.job.stores:
        return None
    if work.status.terminal or not work.agents:
        old = next((c for c in work.status.conditions if c.type == reasons.STORES_HEALTHY), None)
        return old or Condition(reasons.STORES_HEALTHY, False, "Unknown", "no sidecar has reported yet")
    errors = {s.name: s.error for p in work.current if p.agent and p.fresh(5.0) for s in p.agent.stores if s.error}
    if not errors:
        return Condition(reasons.STORES_HEALTHY, True, "StoresAvailable", f"{', '.join(work.job.stores)} work")
    text = "; ".join(f"{n}: {e}" for n, e in sorted(errors.items()))
    training = work.status.stage in ("running", "draining", "completing")
    outlook = "training goes on, saves will catch up" if training else "the job may have to wait for it: see Training"
    return Condition(reasons.STORES_HEALTHY, False, "StoreUnavailable", f"{text}; {outlook}")


def _memory(work: Pass) -> Condition | None:
    if work.status.terminal:
        return None
    errors = [f"pod {p.name}: {p.agent.arena_error}" for p in work.current if p.agent and p.agent.arena_error]
    if errors:
        return Condition(reasons.MEMORY_FITS, False, "MemoryTooSmall", errors[0])
    return Condition(reasons.MEMORY_FITS, True, "MemoryFits", "snapshots fit the sidecars' memory")


def _end(work: Pass) -> tuple[Condition, ...]:
    status = work.status
    if not status.terminal:
        return ()
    kind = reasons.SUCCEEDED if status.phase == "Succeeded" else reasons.FAILED
    return (Condition(kind, True, _first_word(status.message, status.phase), status.message),)


def _first_word(message: str, phase: str) -> str:
    return message.split(":", 1)[0] if phase == "Failed" else "Completed"
