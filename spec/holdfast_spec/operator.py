"""The operator: the real `plan`, what it sees, and its status without what only reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from holdfast_core.messages import AgentState, Inventory, Member, RankState, StoreInventory, StoreState
from holdfast_core.planner import Job, PodView, Policy, Restarts, Status
from holdfast_core.planner.types import Action, CreatePod, DeletePod, Inspect, Send
from holdfast_core.timeline import Copy

from . import rules
from .group import STORE
from .world import DARK, NO_STEP, OFF, Pod, Prepare, Store, World

UID = "0123456789"
NOW = 1000.0
PATIENCE = 20.0  # seconds; longer than processes that are to stop are waited for, shorter than all else
_MANY = 10**6
_NEUTRAL: dict[str, Any] = {
    "step": NO_STEP, "reached": NO_STEP, "lost_at_step": NO_STEP, "restarts": Restarts(), "recent_failures": (),
    "failures": (), "no_progress": 0, "no_progress_step": NO_STEP, "last_recovery": None, "recoveries": 0,
    "first_step_at": None, "lost_seconds": 0.0, "goodput": None, "ready": 0, "capture": "", "protection": None,
    "conditions": (), "message": "", "failed_at": None, "cause": None, "node_failures": (), "avoided": (), "once_avoided": (),
}  # fmt: skip


def job(world: World) -> Job:
    """As the planner knows it. It never gives up: budgets of restarts are not what is examined here."""
    policy = Policy(restart_limit=_MANY, no_progress_limit=_MANY)
    return Job("default", "job", UID, world.pods, 1, (STORE,) * world.stores, policy=policy, peers=world.peers)


def settled(status: Status) -> Status:
    """Without counters, times and texts, which decide nothing here."""
    known = {f.name for f in fields(Status)}
    changes = {name: value for name, value in _NEUTRAL.items() if name in known}
    levels = {name: level for name, level in status.checkpoints.items() if name == STORE}
    return replace(status, phase=status.phase if status.terminal else "Running", checkpoints=levels, **changes)


def key(value: Any) -> Any:
    """Of a status or an order, to tell equal ones."""
    return tuple((f.name, rules.freeze(_inner(getattr(value, f.name)))) for f in fields(value))


def _inner(value: Any) -> Any:
    if hasattr(value, "levels") and hasattr(value, "members"):  # a command, which has a mapping inside
        return key(value)
    return value


# --- what it sees


View = tuple[Any, ...]


def view(pod: Pod) -> View:
    """What a sidecar tells of itself, as far as it decides anything; a step further than the first is like the first."""
    source = pod.prepare.source if pod.prepare else None
    start = source.step if source else NO_STEP
    step = min(pod.done, start + 1) if pod.process == "up" else NO_STEP
    parity = tuple(sorted((b.parity for b in rules.buffers(pod)), key=rules.by_copy))
    process = pod.process if pod.writer == pod.attempt else "none"
    copies = tuple(sorted(rules.copies(pod)))
    return (
        pod.label,
        pod.attempt,
        pod.phase,
        process,
        step,
        copies,
        parity,
        pod.stored,
        pod.rejected,
        pod.passing,
        *_REPORTED(pod),
    )


def reported(pod: Pod) -> tuple[Copy | None, ...]:
    """What a sidecar tells besides, upon which the planner only reports. A test holds it to that."""
    return (pod.told, pod.kept.protected)


def _silent(_: Pod) -> tuple[Copy | None, ...]:
    return (None, None)


_REPORTED = _silent
BLANK: View = ("", 0, "idle", "none", NO_STEP, (), (), None, None, False, None, None)  # of a pod that does not count any more


def agent(seen: View, index: int, world: World) -> AgentState:
    """The message that says it."""
    label, attempt, phase, process, step, sealed, parity, stored, rejected, passing, told, protected = seen
    return AgentState(
        UID, label, index, attempt, phase, launcher=True,
        error="rejected" if phase == "failed" else "", error_source=rejected, passing=passing,
        ranks=(_rank(index, process, step),), sealed={index: sealed}, committed=told,
        stores=(StoreState(STORE, committed=stored),) * world.stores, every=1, protected=protected,
        parity={index: parity} if parity else {},
    )  # fmt: skip


def _rank(index: int, process: str, step: int) -> RankState:
    if process == "corrupt":
        return RankState(index, "exited", exit_code=86, corrupt="checksum mismatch")
    if process == "dead":
        return RankState(index, "exited", signal=9)
    return RankState(index, "running" if process == "up" else "waiting", step=step)


def pod_view(pod: Pod, seen: View, world: World, *, lost: bool) -> PodView:
    """A pod as observed; with all signs of a loss, or none."""
    name = job(world).pod_name(pod.index, pod.incarnation)
    fine = PodView(
        name, pod.index, pod.incarnation, phase="Running", deleting=pod.deleting, node=pod.node, ip=pod.label, port=1, age=60.0,
        agent=agent(seen, pod.index, world), agent_age=0.1, domain=pod.node,
    )  # fmt: skip
    if not lost:
        return fine
    return replace(fine, dial_failures=_MANY, unanswered=_MANY, node_ready=False, node_lease_age=1e6, agent_age=1e6)


def inventory(store: Store) -> Inventory:
    """The store's answer; that a shard is corrupt shows only when it is read."""
    return Inventory((StoreInventory(STORE, tuple(c for c, _ in store.copies), store.records),))


# --- what it orders


def matters(action: Action) -> bool:
    """Events and the like change nothing here."""
    return isinstance(action, Send | CreatePod | DeletePod | Inspect)


def prepare_of(order: Any) -> Prepare:
    """A command to prepare, as pods remember it."""
    members: tuple[Member, ...] = order.members
    return Prepare(order.attempt, members, order.source, order.history, tuple(sorted(order.levels.items())))


def label(name: str) -> str:
    """Of a pod, by its name."""
    return name.split("-", 2)[-1].replace("-", ".")


def place_for(index: int, incarnation: int, pods: Iterable[Pod], world: World) -> str:
    """The scheduler: where it was, unless that node is bad; then on a new one."""
    node = world.node(index)
    bad = {p.node for p in pods if p.net in (DARK, OFF)}
    return f"s{index}.{incarnation}" if node in bad else node


def describe(action: Action) -> str:
    """For scripts."""
    if isinstance(action, Send):
        source = action.command.source
        tail = f" from {source.level} {source.step}.a{source.attempt}" if source else ""
        return f"{action.command.kind} {action.command.attempt}{tail} -> {label(action.pod)}"
    if isinstance(action, CreatePod):
        return f"create {action.index}.{action.incarnation}"
    if isinstance(action, DeletePod):
        return f"delete {label(action.name)}"
    return type(action).__name__.lower()
