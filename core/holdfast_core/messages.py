"""Messages between operator, sidecars, launchers and trainers. All frozen, all JSON (see `wire`).

operator -> sidecar   `Command` (POST /v1/command), fenced by attempt
sidecar  -> operator  `AgentState` (GET /v1/events, one JSON document a line): always the whole state, so that a lost
                      line, a reconnect or a restart of either side costs nothing
sidecar <-> sidecar   `Reached` up, `Order` down (WebSocket /v1/group at the coordinator, the sidecar of rank 0)
trainer, launcher <-> sidecar   one JSON document a line on a Unix socket (see `local`)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .durable import Shard
from .timeline import Copy, Resume

MEMORY = "memory"  # name of the level; stores are named by the user
VERSION = 1


@dataclass(frozen=True)
class Member:
    """A pod of an attempt: its first global rank, and where its sidecar listens."""

    index: int
    pod: str
    host: str
    port: int
    first_rank: int
    processes: int


@dataclass(frozen=True)
class Source:
    """Where an attempt's state comes from: level `memory` or a store's name."""

    level: str
    step: int
    attempt: int


@dataclass(frozen=True)
class Command:
    """An order to a sidecar. `kind`: prepare | launch | interval | stop | persist | finish. A lower attempt is refused (409).

    `every` is the interval of snapshots in steps (prepare, interval); None, from an older operator, leaves it as it is. An
    interval is for the coordinator, who tells all members.
    """

    kind: str
    attempt: int
    members: tuple[Member, ...] = ()
    source: Source | None = None  # prepare: None starts from scratch
    history: tuple[Resume, ...] = ()  # prepare: this job's timeline, this attempt included
    master_port: int = 0  # prepare; MASTER_ADDR is the host of member 0
    grace_seconds: float = 5.0  # stop, prepare, finish: SIGTERM before SIGKILL
    exit_code: int = 0  # finish
    reason: str = ""
    every: int | None = None


@dataclass(frozen=True)
class RankState:
    """A rank's process as its sidecar sees it. `step` is the last finished one (-1: none), `idle_seconds` how long ago.

    `state`: waiting | running | exited. `exit_code` as a shell shows it is not used: a signal has `signal` set.
    """

    rank: int
    state: str = "waiting"
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    step: int = -1
    idle_seconds: float = 0.0
    loss: float | None = None
    log_tail: tuple[str, ...] = ()  # on a failed exit, the last lines of the process
    restored_step: int | None = None
    corrupt: str | None = None  # set when the trainer refused the snapshot at load


@dataclass(frozen=True)
class StoreState:
    """A durable level as this sidecar sees it. `error` is empty when the last access worked."""

    name: str
    error: str = ""
    committed: Copy | None = None
    uploaded_bytes: int = 0
    seconds: float = 0.0  # duration of the last commit


@dataclass(frozen=True)
class AgentState:
    """Everything a sidecar knows, sent on each change and as heartbeat once a second.

    `phase`: idle -> preparing -> prepared -> running -> (stopping ->) exited -> finished; `failed` is a failed prepare,
    explained in `error`. `sealed` lists the valid snapshots in RAM by rank, `committed` the newest step known to be sealed
    by all ranks. `error_source` is the source that could not be used.

    `step_seconds` and `cost_seconds` are medians over the last steps and snapshots of the slowest rank (None: too few yet): the
    time of a step, and what a snapshot takes from the training loop. `capture` is the trainer's word on how it captures, and
    why. `every` is the interval in force (0: none was ordered; None: an older sidecar, which knows none).
    """

    job_uid: str
    pod: str
    index: int
    attempt: int
    phase: str = "idle"
    launcher: bool = False
    error: str = ""
    error_source: Source | None = None
    ranks: tuple[RankState, ...] = ()
    sealed: dict[int, tuple[Copy, ...]] = field(default_factory=dict)
    committed: Copy | None = None
    stores: tuple[StoreState, ...] = ()
    arena_bytes: int = 0
    slot_bytes: int = 0
    arena_error: str = ""  # memory.size too small, with the size that is needed
    skipped: int = 0  # snapshots skipped since the sidecar started
    stall_seconds: float = 0.0  # of the last snapshot, as are the four below
    fence_seconds: float = 0.0
    capture_seconds: float = 0.0
    copied: int = -1  # bytes that were copied anew; -1: unknown
    capture: str = ""
    step_seconds: float | None = None
    cost_seconds: float | None = None
    every: int | None = None
    version: int = VERSION


@dataclass(frozen=True)
class StoreInventory:
    """The committed copies that a store holds for this job, and its records of attempts. GET /v1/inventory.

    `unusable` says, a line each, why a manifest there can't serve this job (another world size, garbage).
    """

    name: str
    copies: tuple[Copy, ...] = ()
    history: tuple[Resume, ...] = ()
    unusable: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Inventory:
    """Answer of GET /v1/inventory, stores in the order of the job's spec."""

    stores: tuple[StoreInventory, ...] = ()


@dataclass(frozen=True)
class Reached:
    """A member tells the coordinator that its rank sealed (`memory`) or uploaded a step, or failed to (`error`).

    With level `memory` an error means that the rank had no slot for the step.
    """

    attempt: int
    level: str
    rank: int
    copy: Copy
    shard: Shard | None = None
    error: str = ""


@dataclass(frozen=True)
class Order:
    """The coordinator to all members. `kind`: committed | persist | resync (seal nothing below `copy.step`) | interval.

    `every` is the interval of snapshots in steps.
    """

    kind: str
    attempt: int
    level: str
    copy: Copy
    every: int = 0
