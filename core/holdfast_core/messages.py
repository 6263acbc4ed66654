"""Messages between operator, sidecars, launchers and trainers. All frozen, all JSON (see `wire`).

operator -> sidecar   `Command` (POST /v1/command), fenced by attempt
sidecar  -> operator  `AgentState` (GET /v1/events, one JSON document a line): always the whole state, so that a lost
                      line, a reconnect or a restart of either side costs nothing
sidecar <-> sidecar   `Reached` up, `Order` down (WebSocket /v1/group at the coordinator, the sidecar of rank 0)
sidecar <-> sidecar   bytes of snapshots and of parity (the sidecar's `peers`), on a port of their own
trainer, launcher <-> sidecar   one JSON document a line on a Unix socket (see `local`)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .config import PEER_PORT
from .durable import Shard
from .erasure.groups import Group
from .timeline import Copy, Resume

MEMORY = "memory"  # names of the levels in RAM; stores are named by the user
PEERS = "peers"
TOLD = "told"  # a `Reached` of this level ends what a member says when it joins
VERSION = 1


@dataclass(frozen=True)
class Member:
    """A pod of an attempt: its first global rank, where its sidecar listens, and its failure domain ("": unknown)."""

    index: int
    pod: str
    host: str
    port: int
    first_rank: int
    processes: int
    domain: str = ""
    peer_port: int = PEER_PORT


@dataclass(frozen=True)
class Source:
    """Where an attempt's state comes from: level `memory`, `peers` or a store's name; the slowest one if ranks differ.

    As something that can't be used it may be about one rank's part alone (-1: all of it).
    """

    level: str
    step: int
    attempt: int
    rank: int = -1


@dataclass(frozen=True)
class Command:
    """An order to a sidecar. `kind`: prepare | launch | interval | stop | persist | finish. A lower attempt is refused (409).

    `every` is the interval of snapshots in steps (prepare, interval); None, from an older operator, leaves it as it is. An
    interval is for the coordinator, who tells all members. `levels` names the level for each rank that does not have the
    source's step in its own memory; without any, all take it from `source.level`.
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
    levels: dict[int, str] = field(default_factory=dict)


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
class Parity:
    """Parity that a rank's pod holds whole: of which step, for which ranks (in codeword order), how many may be lost."""

    copy: Copy
    group: tuple[int, ...]
    parity: int


@dataclass(frozen=True)
class Replication:
    """The last step that this pod took part in bringing to peers' RAM. `error` says why it could not, and names the pod.

    `received` counts bytes from the network; the rest of the parity was taken over, because what it covers had not changed.
    """

    copy: Copy
    seconds: float = 0.0
    received: int = 0
    error: str = ""


@dataclass(frozen=True)
class AgentState:
    """Everything a sidecar knows, sent on each change and as heartbeat twice a second.

    `phase`: idle -> preparing -> prepared -> running -> (stopping ->) exited -> finished; `failed` is a failed prepare,
    explained in `error`. `sealed` lists the valid snapshots in RAM by rank, `committed` the newest step known to be sealed
    by all ranks. `error_source` is the source that could not be used, `passing`: at that moment.
    `brought`: bytes of the source's step that this preparation has brought so far from peers or a store.

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
    passing: bool = False
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
    parity: dict[int, tuple[Parity, ...]] = field(default_factory=dict)  # by rank
    parity_bytes: int = 0
    protected: Copy | None = None  # newest step that every group is known to hold whole parity of
    unprotected: tuple[int, ...] = ()  # pods that the groups were made without, because they do not keep up
    replication: Replication | None = None
    brought: int = 0
    silent: dict[int, float] = field(default_factory=dict)  # watched pods that do not answer here: seconds, by index
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

    With level `memory` an error means that the rank had no slot for the step. With level `peers` the rank's pod holds whole
    parity of the step for the ranks of `group`, up to `parity` of which may be lost; `round` is that of the order which it
    answers (0: none, it is told on joining), and an error may name the pod to `blame` (-1: none).
    """

    attempt: int
    level: str
    rank: int
    copy: Copy
    shard: Shard | None = None
    error: str = ""
    group: tuple[int, ...] = ()
    parity: int = 0
    round: int = 0
    blame: int = -1


@dataclass(frozen=True)
class Order:
    """The coordinator to all members. `kind`: committed | persist | resync (seal nothing below `copy.step`) | interval |
    replicate (make parity of `copy` in these `groups`; whatever was on its way before is given up) | release (give it up).

    `every` is the interval of snapshots in steps; `round` numbers the orders to replicate; `reason`: why it is given up, if no
    member has said so itself.
    """

    kind: str
    attempt: int
    level: str
    copy: Copy
    every: int = 0
    groups: tuple[Group, ...] = ()
    round: int = 0
    reason: str = ""
