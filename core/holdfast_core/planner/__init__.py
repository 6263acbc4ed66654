"""The job planner: `plan(job, observed, status, now) -> Plan`, and the types around it."""

from .plan import plan
from .types import (
    Action,
    Cause,
    Condition,
    CreatePod,
    DeletePod,
    Emit,
    EndPod,
    Inspect,
    Job,
    LevelStatus,
    Observed,
    Plan,
    PodView,
    Policy,
    Recovery,
    Restarts,
    Send,
    Status,
    Worker,
)

__all__ = [
    "Action", "Cause", "Condition", "CreatePod", "DeletePod", "Emit", "EndPod", "Inspect", "Job", "LevelStatus",
    "Observed", "Plan", "PodView", "Policy", "Recovery", "Restarts", "Send", "Status", "Worker", "plan",
]  # fmt: skip
