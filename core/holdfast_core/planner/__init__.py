"""The job planner: `plan(job, observed, status, now) -> Plan`, and the types around it."""

from .plan import plan
from .types import (
    Action,
    Avoided,
    Cause,
    Condition,
    CreatePod,
    CreateSpare,
    DeletePod,
    Emit,
    EndPod,
    Inspect,
    Job,
    LevelStatus,
    NodeFailure,
    Observed,
    Plan,
    PodView,
    Policy,
    Protection,
    Recovery,
    Restarts,
    Send,
    Spare,
    Status,
    TaintNode,
    UntaintNode,
    Worker,
)

__all__ = [
    "Action", "Avoided", "Cause", "Condition", "CreatePod", "CreateSpare", "DeletePod", "Emit", "EndPod", "Inspect", "Job",
    "LevelStatus", "NodeFailure", "Observed", "Plan", "PodView", "Policy", "Protection", "Recovery", "Restarts", "Send",
    "Spare", "Status", "TaintNode", "UntaintNode", "Worker", "plan",
]  # fmt: skip
