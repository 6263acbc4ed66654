"""What a `World` is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from holdfast_core.config import PeersConfig
from holdfast_core.interval import Rule, Steps
from holdfast_core.messages import (
    Parity,
    Source,
)
from holdfast_core.planner import (
    Job,
)
from holdfast_core.timeline import Copy, Resume


@dataclass
class Rank:
    state: str = "waiting"
    step: int = -1
    exit_code: int | None = None
    signal: int | None = None
    sealed: set[Copy] = field(default_factory=set)
    parity: set[Parity] = field(default_factory=set)
    kept: Copy | None = None


@dataclass
class Pod:
    name: str
    index: int
    incarnation: int
    node: int
    born: float
    attempt: int = 0
    phase: str = "idle"
    kube: str = "Pending"
    deleting: float | None = None
    dark: float | None = None  # node off since
    source: Source | None = None
    history: tuple[Resume, ...] = ()
    levels: dict[int, str] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    error: str = ""
    error_source: Source | None = None
    ranks: list[Rank] = field(default_factory=list)
    committed: Copy | None = None
    every: int = 0
    spare: int = 0
    joined: float = 0.0  # since when it has its index

    @property
    def up(self) -> bool:
        return self.kube == "Running" and self.dark is None


def job(
    replicas: int = 3,
    processes: int = 1,
    stores: tuple[str, ...] = ("pvc", "s3"),
    every: Rule | None = None,
    parity: int = 0,
    size: int = 4,
    spares: int = 0,
    **policy,
) -> Job:
    peers = PeersConfig(size, parity)
    made = Job("default", "gpt", "0123456789", replicas, processes, stores, peers=peers, every=every or Steps())
    return replace(made, spares=spares, policy=replace(made.policy, **policy))
