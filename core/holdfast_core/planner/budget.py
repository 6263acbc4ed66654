"""When to stop trying: limits on failures in a window, and on failures that made no progress."""

from __future__ import annotations

from . import reasons
from .types import Cause, Policy, Status


def charge(status: Status, policy: Policy, cause: Cause, now: float) -> tuple[tuple[float, ...], int, str | None]:
    """Failures in the window with this one, failures in a row without progress, and why to give up (or None).

    Progress is a step further than any before. Losing pods or nodes is not the script's fault and never counts as lack of
    progress, only against the windowed limit.
    """
    recent = (*(t for t in status.recent_failures if now - t < policy.restart_window), now)
    stuck = _stuck(status, cause)
    if stuck >= policy.no_progress_limit:
        return recent, stuck, reasons.NO_PROGRESS
    if len(recent) > policy.restart_limit:
        return recent, stuck, reasons.RESTART_LIMIT
    return recent, stuck, None


_OWN_FAULT = {
    reasons.PROCESS_DIED,
    reasons.PROCESS_FAILED,
    reasons.CONTAINER_RESTARTED,
    reasons.HANG,
    reasons.STARTUP_TIMEOUT,
    reasons.PREPARE_FAILED,
}


def _stuck(status: Status, cause: Cause) -> int:
    if cause.reason not in _OWN_FAULT:
        return status.no_progress
    return status.no_progress + 1 if status.reached <= status.no_progress_step else 1
