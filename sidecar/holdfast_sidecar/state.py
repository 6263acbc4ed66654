"""Puts together what is told to the operator: the whole state, each time."""

from __future__ import annotations

from typing import Any

from holdfast_core.messages import AgentState

from .lifecycle import Lifecycle
from .replication import Replicator
from .trainers import Trainers


class States:
    """Builds `AgentState` from the parts."""

    def __init__(self, lifecycle: Lifecycle, trainers: Trainers) -> None:
        self._lifecycle, self._trainers = lifecycle, trainers

    def state(self) -> AgentState:
        """As of now."""
        life, record, pace = self._lifecycle, self._lifecycle.record, self._trainers.pace
        waits = life.config.index < 0  # a spare has no ranks, and nothing to say about anybody's
        return AgentState(
            job_uid=life.config.job_uid,
            pod=life.config.pod,
            index=life.config.index,
            attempt=record.attempt,
            phase=record.phase,
            launcher=life.launcher.connected,
            error=record.error,
            error_source=record.error_source,
            passing=record.passing,
            brought=life.progress.nbytes,
            ranks=() if waits else life.ranks.states(),
            sealed={} if waits else life.arenas.sealed(),
            committed=record.committed,
            stores=tuple(level.state for level in life.levels.values()),
            arena_bytes=life.arenas.total_bytes,
            slot_bytes=life.arenas.slot_bytes,
            arena_error=life.arenas.error,
            skipped=self._trainers.skipped,
            stall_seconds=pace.last.stall_seconds,
            fence_seconds=pace.last.fence_seconds,
            capture_seconds=pace.last.capture_seconds,
            copied=pace.last.copied,
            capture=pace.mode,
            step_seconds=pace.step_seconds,
            cost_seconds=pace.cost_seconds,
            every=record.every,
            **(_peers(life.replicator) if life.replicator and not waits else {}),
        )


def _peers(replicator: Replicator) -> dict[str, Any]:
    parity = replicator.peers.parity
    return {
        "parity": parity.whole(),
        "parity_bytes": parity.total_bytes,
        "protected": replicator.kept.protected,
        "unprotected": replicator.without,
        "replication": replicator.last,
        "silent": replicator.peers.silent(),
    }
