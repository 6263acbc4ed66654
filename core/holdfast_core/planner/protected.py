"""How many faults the job can take right now, as the sidecars tell it: condition `Protected` and `status.protection`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..messages import MEMORY
from ..protection import Holdings, faults
from ..timeline import Copy, is_valid
from . import reasons, sources
from .passing import Pass
from .types import Condition, Job, Protection


def update(work: Pass) -> None:
    """Look at what is held now."""
    if not work.job.peers.parity or work.status.terminal:
        work.set(protection=None)
        return
    held = sources.holdings(work)
    domains = {p.index: p.domain for p in work.current}
    copies = {p.copy for entries in held.parity.values() for p in entries if is_valid(p.copy, work.status.history)}
    best = max(((_faults(work, held, c, domains), c) for c in copies), default=None)
    if best is None or not best[0]:
        work.set(protection=Protection(0, -1, _why_not(work, best is not None, domains)))
        return
    work.set(protection=Protection(best[0], best[1].step, _words(work, best[0], best[1])))


def _faults(work: Pass, held: Holdings, copy: Copy, domains: Mapping[int, str]) -> int:
    size = work.job.processes
    pods = {rank: rank // size for rank in range(work.job.world_size)}
    return faults(held, copy, pods, domains)


def _words(work: Pass, count: int, copy: Copy) -> str:
    memory = work.status.checkpoints.get(MEMORY)
    behind = max(0, memory.step - copy.step) if memory else 0
    tail = f", {behind} steps behind memory" if behind else ""
    errors = _errors(work)
    tail += f"; the last round failed: {errors[0]}" if behind and errors else ""
    return f"{_any(work, count)} may be lost: step {copy.step} is in peers' RAM{tail}"


def _domain(work: Pass) -> str:
    """What fails as a whole, in a word: that of the label whose values are meant."""
    return "node" if work.job.topology == Job.topology else work.job.topology.rpartition("/")[2]


def _any(work: Pass, count: int) -> str:
    return f"any {_domain(work)}" if count == 1 else f"any {count} {_domain(work)}s"


def _errors(work: Pass) -> list[str]:
    return [a.replication.error for a in work.agents if a.replication and a.replication.error]


def _why_not(work: Pass, whole: bool, domains: Mapping[int, str]) -> str:
    """In words, the reason first, as in `pod.waiting`."""
    if work.job.replicas == 1:
        return "SinglePod: one pod has no peers: only stores survive its loss"
    errors = _errors(work)
    alone = sorted({i for a in work.agents for i in a.unprotected})
    if errors:
        return f"ReplicationFails: {errors[0]}"
    if alone:
        return f"LeftOut: pods {', '.join(map(str, alone))} do not keep up and belong to no group"
    crowded = [name for name, count in Counter(domains.values()).items() if name and count > work.job.peers.parity]
    if whole and crowded:
        word = _domain(work)
        which = crowded[0] if word == "node" else f"{word} {crowded[0]}"
        return f"SharedNode: {which} runs more pods of a group than may be lost: the job needs more {word}s, or more parity"
    return "Replicating: no step is in the RAM of every group yet"


def condition(work: Pass) -> Condition | None:
    """For `kubectl describe`; without step numbers, which would be news with every step."""
    found = work.status.protection
    if found is None:
        return None
    unknown = _unlabelled(work)
    if found.faults:
        text = f"{_any(work, found.faults)} may be lost without losing the protected step{unknown}"
        return Condition(reasons.PROTECTED, True, "TopologyUnknown" if unknown else "PeersHoldParity", text)
    reason, _, message = found.message.partition(": ")
    return Condition(reasons.PROTECTED, False, reason, message + unknown)


def _unlabelled(work: Pass) -> str:
    """Nodes that count as domains of their own though the job names a label: it may be a typo."""
    if work.job.topology == Job.topology:
        return ""
    nodes = sorted({p.node for p in work.current if p.node and p.domain == p.node})
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    which = f"{', '.join(nodes[:3])}{more}"
    return f"; no label {work.job.topology} is known of {which}: each counts by itself" if nodes else ""
