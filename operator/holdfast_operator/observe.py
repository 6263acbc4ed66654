"""From a pod as the API server shows it to the planner's `PodView`. Pure; containers are looked up by name, never by place."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast_core import config
from holdfast_core.messages import AgentState
from holdfast_core.planner import PodView

from . import names

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_STARTING = ("ContainerCreating", "PodInitializing", "")
_SHOULD_BE_HEARD = 5.0  # seconds of dialling a started sidecar before its silence counts


@dataclass(frozen=True)
class Heard:
    """What the connection to a pod's sidecar has brought. Ages are seconds."""

    agent: AgentState | None = None
    age: float | None = None
    failures: int = 0
    refused: bool = False
    dialling: float = 0.0
    error: str = ""
    answers: bool = False
    unanswered: int = 0


@dataclass(frozen=True)
class NodeHealth:
    """A pod's node: the Ready condition, and the age of its lease."""

    ready: bool | None = None
    lease_age: float | None = None


def pod_view(pod: Mapping[str, Any], heard: Heard, node: NodeHealth, note: str, now: float, domain: str = "") -> PodView | None:
    """The planner's view, or None for a pod whose labels are not ours. `note` is a warning that the cluster posted about it,
    `domain` what fails together with its node."""
    meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    place = _place(meta.get("labels") or {})
    if place is None:
        return None
    phase = status.get("phase", "Pending")
    return PodView(
        name=meta["name"],
        index=place[0],
        incarnation=place[1],
        spare=place[2],
        phase=phase,
        deleting="deletionTimestamp" in meta,
        node=spec.get("nodeName", ""),
        ip=status.get("podIP", ""),
        port=config.API_PORT,
        age=age(meta, now),
        waiting="" if phase in ("Succeeded",) else _waiting(pod, heard, note),
        agent=_aged(heard),
        agent_age=_age(heard, pod),
        dial_failures=heard.failures,
        refused=heard.refused,
        node_ready=node.ready,
        node_lease_age=node.lease_age,
        domain=domain,
        answers=heard.answers,
        unanswered=heard.unanswered,
    )


def age(meta: Mapping[str, Any], now: float) -> float:
    """Seconds since a pod was made, by our own clock where it tells: what the API server writes is cut to whole seconds."""
    made = (meta.get("annotations") or {}).get(names.ANNOTATION_MADE, "")
    created = float(made) if _NUMBER.fullmatch(made) else seconds(meta.get("creationTimestamp"))
    return max(0.0, now - (created or now))


def seconds(timestamp: Any) -> float | None:
    """Seconds since the epoch of a Kubernetes timestamp, or None."""
    if not isinstance(timestamp, str):
        return None
    try:
        return datetime.datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return None


def starting(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has a node but no running container yet: what holds it up is told only by events."""
    return bool(pod.get("spec", {}).get("nodeName")) and pod.get("status", {}).get("phase", "Pending") == "Pending"


def _place(labels: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Index, incarnation, and the number of a spare. Which index a spare took is not read from its labels: they follow."""
    try:
        spare, incarnation = int(labels.get(names.LABEL_SPARE, "0")), int(labels[names.LABEL_INCARNATION])
        return (-1 if spare else int(labels[names.LABEL_INDEX])), incarnation, spare
    except (KeyError, ValueError):
        return None


def _aged(heard: Heard) -> AgentState | None:
    """The state with its ranks' idle times brought up to now."""
    if heard.agent is None or not heard.age:
        return heard.agent
    ranks = tuple(replace(r, idle_seconds=r.idle_seconds + heard.age) if r.state == "running" else r for r in heard.agent.ranks)
    return replace(heard.agent, ranks=ranks)


def _age(heard: Heard, pod: Mapping[str, Any]) -> float | None:
    """Seconds since the sidecar was heard. One that has started but never answers us counts as silent since the first dial:
    after a restart of the operator, a pod that died meanwhile must not be waited for for ever."""
    if heard.age is not None:
        return heard.age
    return heard.dialling if _started(pod) and heard.failures and heard.dialling > _SHOULD_BE_HEARD else None


def _waiting(pod: Mapping[str, Any], heard: Heard, note: str) -> str:
    """Why the pod is not up, as "Reason: message"; empty while it simply starts, or is up."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return _text(status.get("reason") or "Failed", status.get("message", "")) if status.get("message") else ""
    return (
        _unscheduled(status)
        or next((w for w in map(_held_up, _statuses(pod)) if w), "")
        or (note if starting(pod) else "")
        or (_unheard(heard) if _started(pod) else "")
    )


def _unscheduled(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _text(condition.get("reason", "Unschedulable"), condition.get("message", ""))
    return ""


def _held_up(container: Mapping[str, Any]) -> str:
    waiting = container.get("state", {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _STARTING:
        return ""
    last = container.get("lastState", {}).get("terminated") or {}
    said = " ".join(filter(None, (last.get("reason"), last.get("message"))))
    tail = f" (last exit code {last.get('exitCode')}: {said})" if last else ""
    return _text(reason, f"container {container.get('name')}: {waiting.get('message', '')}{tail}")


def _unheard(heard: Heard) -> str:
    if heard.agent is None and heard.refused and heard.error and heard.dialling > 2 * _SHOULD_BE_HEARD:
        return _text("SidecarUnreachable", heard.error)
    return ""


def _started(pod: Mapping[str, Any]) -> bool:
    """Whether the sidecar's startup probe has passed: from then on it is expected to answer."""
    return any(s.get("name") == names.SIDECAR and s.get("started") for s in _statuses(pod))


def _statuses(pod: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _text(reason: str, message: str) -> str:
    return f"{reason}: {' '.join(message.split())}"[:500]
