"""The stages of an attempt: what each waits for, what it orders, and how failures lead to the next attempt."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace

from .. import recovery
from ..messages import AgentState, Command, Member
from ..protection import Holdings
from ..timeline import Resume, extend, merge
from . import failures, nodes, reasons, sources, spares
from .passing import Pass
from .types import Cause, CreatePod, Inspect, PodView, Send, Worker

_STOP_SECONDS = 10.0
_FRESH = 3.0  # seconds; an agent heard within this time is there
_HEARSAY = 1.0  # seconds until a deletion is heard of that a pod already obeys
_NOTE_SECONDS = 10.0  # of a long preparation, between two words of how far it is


def pods_lost(work: Pass, gone: Mapping[int, Cause]) -> None:
    """React to pods that no longer count."""
    if not gone:
        return
    if work.status.stage == "running" and _can_drain(work, gone):
        _start_drain(work, next(iter(gone.values())))
    elif work.status.stage != "draining" or not _only_deletions(gone):
        give_up(work, gone)


def give_up(work: Pass, gone: Mapping[int, Cause]) -> None:
    """The lost pods' successors count from now on."""
    nodes.note(work, gone)
    for index, cause in gone.items():
        work.emit(reasons.POD_REPLACED, f"pod {index}: {cause.message}", warning=True)
    taken = spares.take(work, gone)
    workers = tuple(
        taken.get(w.index, Worker(w.index, w.incarnation + 1)) if w.index in gone else w for w in work.status.workers
    )
    silence = max((p.agent_age or 0.0 for p in work.current if p.index in gone and not p.deleting), default=0.0)
    counted = work.status.restarts
    everyone = len(gone) == work.job.replicas
    known = work.status.cause if work.status.stage == "draining" else None
    work.set(
        workers=workers,
        restarts=replace(counted, pod=counted.pod + len(gone), job=counted.job + everyone),
    )
    failures.fail(work, known or next(iter(gone.values())), since=work.now - silence, in_place=False)


def advance(work: Pass) -> None:
    """Do what the current stage asks for."""
    step = {
        "gathering": _gather,
        "preparing": _prepare,
        "launching": _launch,
        "running": _run,
        "draining": _drain,
        "completing": _complete,
        "finishing": _finish,
    }.get(work.status.stage)
    if step is not None:
        step(work)


# --- gathering: every pod there, then a source


def _gather(work: Pass) -> None:
    _stop_old_processes(work)
    pods = work.current
    work.set(ready=sum(_ready(p) for p in pods))
    if len(pods) < work.job.replicas or not all(_ready(p) for p in pods):
        if work.in_stage() > work.job.policy.startup_deadline and work.status.phase != "Pending":
            work.set(message=f"waited {work.in_stage():.0f} s for pods")
        return
    if _still_running(work):
        return
    in_ram = recovery.choose(sources.holdings(work), None, work.job.world_size, work.status.history, work.status.excluded)
    if _needs_inventory(work, in_ram) and work.observed.inventory is None:
        work.do(Inspect(pods[0].name))
        work.look_again = 0.2
        return
    _decide_source(work)


def _ready(pod: PodView) -> bool:
    return pod.fresh(_FRESH) and pod.agent is not None and pod.agent.launcher and bool(pod.ip) and not pod.deleting


def _stop_old_processes(work: Pass) -> None:
    """Survivors must not burn time in a collective that can't finish, and must be dead before a new attempt."""
    for pod in work.current:
        agent = pod.agent
        if agent and agent.attempt < work.status.attempt and any(r.state == "running" for r in agent.ranks):
            work.do(Send(pod.name, Command("stop", agent.attempt, grace_seconds=0.0, reason=work.status.message)))


def _still_running(work: Pass) -> bool:
    """Whether survivors may still commit steps that are not in our view: resuming below them would lose what was committed.

    Processes that can't be killed are not waited for for ever: the preparation says what is wrong with them.
    """
    old = [a for a in work.agents if a.attempt < work.status.attempt and any(r.state == "running" for r in a.ranks)]
    return bool(old) and work.in_stage() < _STOP_SECONDS


def _needs_inventory(work: Pass, in_ram: recovery.Restore | None) -> bool:
    """Stores are asked when RAM has no whole step, something was rejected, or the job is new to this operator."""
    if not work.job.stores:
        return False
    newest = max((s.step for n, s in work.status.checkpoints.items() if n in work.job.stores), default=-1)
    return in_ram is None or bool(work.status.excluded) or newest > in_ram.source.step or not work.status.history


def _decide_source(work: Pass) -> None:
    inventory = work.observed.inventory
    if sources.highest_attempt(inventory) >= work.status.attempt:
        work.set(attempt=sources.highest_attempt(inventory) + 1)
    history = merge(work.status.history, sources.store_records(inventory))
    found = recovery.choose(sources.holdings(work), inventory, work.job.world_size, history, work.status.excluded)
    if found is None and (failures.ask_again(work) or not _may_start_from_scratch(work)):
        return
    why = recovery.explain(found, inventory)
    resume = Resume(work.status.attempt, found.source.step if found else -1)
    source, levels = (found.source, found.levels) if found else (None, {})
    work.set(source=source, levels=levels, history=extend(history, resume), running_since=None, brought=0)
    work.stage("preparing", why)
    work.emit(reasons.RESUMING, f"attempt {work.status.attempt}: {why}")
    _prepare(work)


def _may_start_from_scratch(work: Pass) -> bool:
    """Only if every store was read and none holds anything: else steps that exist would silently be trained again."""
    stores = work.observed.inventory.stores if work.observed.inventory else ()
    unusable = [f"{s.name}: {u}" for s in stores for u in s.unusable]
    if unusable:
        text = f"no usable checkpoint, but {'; '.join(unusable[:3])}"
        failures.end(work, reasons.CHECKPOINT_UNUSABLE, f"{text}: fix the spec or give the store another path")
        return False
    broken = "; ".join(f"{s.name}: {s.error}" for s in stores if s.error)
    if not broken:
        return True
    if work.in_stage() > work.job.policy.startup_deadline:
        failures.end(work, reasons.CHECKPOINT_UNUSABLE, f"no store could be read in time: {broken}")
        return False
    work.set(message=f"waiting for stores, they may hold a checkpoint: {broken}")
    work.do(Inspect(work.current[0].name))
    return False


# --- preparing and launching: all or nobody


def _prepare(work: Pass) -> None:
    number = work.status.attempt
    rejected = [(p, p.agent) for p in work.current if p.agent and p.agent.attempt == number and p.agent.phase == "failed"]
    if rejected:
        _reject(work, *rejected[0])
        return
    for pod in work.current:
        if pod.agent is None or pod.agent.attempt < number:
            work.do(Send(pod.name, _prepare_command(work)))
    if all(p.agent and p.agent.attempt == number and p.agent.phase == "prepared" for p in work.current):
        work.stage("launching", f"attempt {number}: all {work.job.replicas} pods are prepared")
        _launch(work)
    elif _stands_still(work):
        late = [p.name for p in work.current if not (p.agent and p.agent.phase == "prepared")]
        text = f"the preparation made no progress for {work.job.policy.prepare_deadline:.0f} s: {', '.join(late)}"
        failures.fail(work, Cause(reasons.PREPARE_FAILED, text), since=None)


def _stands_still(work: Pass) -> bool:
    """Hundreds of GiB may have to come over a network: that takes its time, as long as bytes arrive. Those that
    come once more, after a restart of a sidecar, are no progress."""
    since = max(work.status.stage_since, work.status.brought_at)
    brought = sum(a.brought for a in work.agents if a.attempt == work.status.attempt)
    if brought > work.status.brought and work.now - since > _NOTE_SECONDS:
        work.set(brought=brought, brought_at=work.now)
        work.set(
            message=f"attempt {work.status.attempt}: pods have brought {brought / 2**30:.1f} GiB from {_where(work)} so far"
        )
        return False
    return work.now - since > work.job.policy.prepare_deadline


def _where(work: Pass) -> str:
    return " and ".join(sorted(set(work.status.levels.values()))) or "memory"


def _reject(work: Pass, pod: PodView, state: AgentState) -> None:
    """A source that can't be used is excluded, and the next best one tried, by a new attempt."""
    if state.error_source is None:
        failures.fail(work, Cause(reasons.PREPARE_FAILED, f"pod {pod.name}: {state.error}"), since=None)
        return
    source, why = state.error_source, f"{state.error_source.level} rejected: {state.error}"
    work.emit(reasons.SOURCE_REJECTED, f"pod {pod.name}: {state.error}", warning=True)
    if not state.passing:
        failures.exclude(work, source, why)
    elif source not in work.status.doubted:
        failures.doubt(work, source, why)
    else:
        failures.put_off(work, source, why)


def _prepare_command(work: Pass) -> Command:
    status = work.status
    return Command(
        "prepare",
        status.attempt,
        members=_members(work),
        source=status.source,
        history=status.history,
        master_port=29500 + status.attempt % 500,
        grace_seconds=0.0 if status.cause else work.job.policy.grace,
        reason=status.message,
        every=status.interval.steps if status.interval else None,
        levels=dict(status.levels),
    )


def _members(work: Pass) -> tuple[Member, ...]:
    size = work.job.processes
    return tuple(Member(p.index, p.name, p.ip, p.port, p.index * size, size, p.domain) for p in work.current)


def _launch(work: Pass) -> None:
    number = work.status.attempt
    agents = [(p, p.agent) for p in work.current if p.agent and p.agent.attempt == number]
    for pod, agent in agents:
        if agent.phase == "prepared":
            work.do(Send(pod.name, Command("launch", number)))
    if len(agents) == work.job.replicas and all(a.phase in ("running", "exited") for _, a in agents):
        phase = work.status.phase if work.status.cause else "Starting"
        work.set(phase=phase, terminated_at=None)
        work.stage("running", f"attempt {number}: processes started")
    elif work.in_stage() > work.job.policy.prepare_deadline:
        failures.fail(work, Cause(reasons.PREPARE_FAILED, "launchers did not start the processes in time"), since=None)


# --- running


def _run(work: Pass) -> None:
    work.set(ready=sum(_ready(p) for p in work.current))
    failure = failures.find(work)
    if failure is not None:
        if not _may_be_a_deletion(work):
            failures.handle(work, failure)
    elif len(work.ranks) == work.job.world_size and all(r.exit_code == 0 for r in work.ranks):
        work.set(step=work.status.reached)
        work.stage("completing", "all ranks exited 0: saving the last step")
        _complete(work)


def _may_be_a_deletion(work: Pass) -> bool:
    """SIGTERM to its processes is the first that a kubelet does for a deleted pod, and may be heard of before the deletion.
    Taken for a death it would cost the pod's newest steps, since nothing would be drained, and be charged twice."""
    if not any(r.signal == signal.SIGTERM for r in work.ranks):
        return False
    since = work.now if work.status.terminated_at is None else work.status.terminated_at
    work.set(terminated_at=since)
    work.look_again = min(work.look_again, 0.2)
    return work.now - since < _HEARSAY


# --- draining: a planned loss (a pod is being deleted) while its memory is still there


def _only_deletions(gone: Mapping[int, Cause]) -> bool:
    return all(c.reason == reasons.POD_DELETED for c in gone.values())


def _can_drain(work: Pass, gone: Mapping[int, Cause]) -> bool:
    somewhere = bool(work.job.stores) or len(gone) <= work.job.peers.parity
    return _only_deletions(gone) and somewhere and all(p.fresh(_FRESH) for p in work.current)


def _start_drain(work: Pass, cause: Cause) -> None:
    work.set(cause=cause, failed_at=work.now, lost_at_step=work.status.step)
    work.emit(reasons.DRAINING, f"{cause.message}: saving the newest step before it goes", warning=True)
    work.stage("draining", cause.message)
    _drain(work)


def _drain(work: Pass) -> None:
    leaving = {p.index: Cause(reasons.POD_DELETED, p.name) for p in work.current if p.deleting}
    for worker in work.status.workers:
        if worker.index in leaving and len(spares.able(work)) < len(leaving):
            work.do(CreatePod(worker.index, worker.incarnation + 1))
    alive = all(p.fresh(_FRESH) for p in work.current) and len(work.current) == work.job.replicas
    if alive and not _drained(work, leaving) and work.in_stage() < work.job.policy.drain_deadline:
        _persist(work, stop=True)
        return
    missing = {w.index for w in work.status.workers} - {p.index for p in work.current}
    causes = {**leaving, **{i: Cause(reasons.POD_DELETED, "pod is gone") for i in missing}}
    give_up(work, causes)


def _persist(work: Pass, *, stop: bool) -> None:
    for pod in work.current:
        if stop and pod.agent and any(r.state == "running" for r in pod.agent.ranks):
            work.do(Send(pod.name, Command("stop", work.status.attempt, grace_seconds=0.0, reason="draining")))
        work.do(Send(pod.name, Command("persist", work.status.attempt)))
    work.look_again = 0.3


def _drained(work: Pass, leaving: Mapping[int, Cause]) -> bool:
    """Whether the newest step in memory is in a place that stays."""
    return _replicated(work, leaving) or (bool(work.job.stores) and _persisted(work))


def _replicated(work: Pass, leaving: Mapping[int, Cause]) -> bool:
    """Whether the pods that stay can rebuild it for those that leave."""
    held = sources.holdings(work)
    newest = max(sources.common_copies(held, work.job.world_size, work.status.history), default=None)
    if newest is None:
        return False
    gone = {r for i in leaving for r in range(i * work.job.processes, (i + 1) * work.job.processes)}
    sealed = {r: copies for r, copies in held.sealed.items() if r not in gone}
    left = Holdings(sealed, {r: parity for r, parity in held.parity.items() if r not in gone})
    return all(left.rebuildable(rank, newest) for rank in gone)


def _persisted(work: Pass) -> bool:
    """Whether each healthy store holds the newest step that is common in memory."""
    common = sources.common_copies(sources.holdings(work), work.job.world_size, work.status.history)
    if not common:
        return True
    coordinator = next((a for a in work.agents if a.index == 0), None)
    if coordinator is None:
        return True
    newest = max(common)
    return all(s.error or (s.committed is not None and s.committed >= newest) for s in coordinator.stores)


# --- the good end


def _complete(work: Pass) -> None:
    if work.job.stores and not _persisted(work) and work.in_stage() < work.job.policy.drain_deadline * 3:
        _persist(work, stop=False)
        return
    work.stage("finishing", "last step saved: pods may go")
    _finish(work)


def _finish(work: Pass) -> None:
    left = [p for p in work.current if p.phase not in ("Succeeded", "Failed") and not p.deleting]
    for pod in left:
        if pod.agent is not None and pod.agent.phase != "finished":
            work.do(Send(pod.name, Command("finish", work.status.attempt, exit_code=0)))
    heard = [p for p in left if p.fresh(_FRESH)]
    if left and heard and work.in_stage() < work.job.policy.drain_deadline * 3:
        return
    work.set(phase="Succeeded", completed_at=work.now, ready=0, failed_at=None)
    work.stage("done", _farewell(work))
    work.emit(reasons.COMPLETED, work.status.message)


def _farewell(work: Pass) -> str:
    status = work.status
    if status.reached < 0:
        return "all ranks exited 0 without reporting a step: does the script call holdfast.Checkpointer.steps()?"
    return f"finished at step {status.reached} after {status.recoveries} recoveries, goodput {status.goodput or 0:.1%}"
