"""What a state of the model is made of: plain values that can be hashed. And the worlds, small enough to be explored whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from holdfast_core.config import PeersConfig
from holdfast_core.erasure.groups import Group
from holdfast_core.messages import Member, Order, Parity, Reached, Source
from holdfast_core.timeline import Copy, History
from holdfast_sidecar.group.keeping import Kept

EMPTY, WRITING, SEALED = 0, 1, 2  # as in `arena.SlotState`
NO_STEP = -1
UP, DARK, OFF = "up", "dark", "off"  # a pod's node: fine; cut off, and running; without power
ALONE, LINKED, HALF = 0, 1, 2  # a member's connection; HALF: broken, and the coordinator does not know yet


class Slot(NamedTuple):
    """A slot of an arena. `good`: its bytes still match their checksums."""

    state: int = EMPTY
    step: int = NO_STEP
    attempt: int = 0
    good: bool = True

    @property
    def copy(self) -> Copy:
        """What it holds."""
        return Copy(self.step, self.attempt)


class Buffer(NamedTuple):
    """Whole parity in one of a rank's two buffers."""

    parity: Parity
    good: bool = True


class Task(NamedTuple):
    """An order to replicate that a member works on. `begun`: its buffer is cleared and being filled."""

    order: Order
    begun: bool = False


class Prepare(NamedTuple):
    """The command that began an attempt."""

    attempt: int
    members: tuple[Member, ...]
    source: Source | None
    history: History
    levels: tuple[tuple[int, str], ...]


class Pod(NamedTuple):
    """A pod: its RAM, its sidecar, its rank, which has the pod's index. `process`: none, up, dead or corrupt (it refused its
    snapshot). `done`: the last step that the process sealed or skipped; `exchanged`: the last one whose gradients it has."""

    index: int  # type: ignore[assignment]  # a tuple's own `index` is asked for by nobody
    incarnation: int
    node: str
    net: str = UP
    deleting: bool = False
    attempt: int = 0
    phase: str = "idle"
    ready: bool = False  # preparing: old processes are dead, void snapshots gone
    prepare: Prepare | None = None
    rejected: Source | None = None
    passing: bool = False
    process: str = "none"
    writer: int = 0
    done: int = NO_STEP
    exchanged: int = NO_STEP
    slots: tuple[Slot, ...] = ()
    committed: int = NO_STEP
    floor: int = NO_STEP
    told: Copy | None = None
    kept: Kept = Kept()
    parity: tuple[Buffer | None, Buffer | None] = (None, None)
    task: Task | None = None
    upload: Copy | None = None
    uploaded: Reached | None = None
    stored: Copy | None = None
    link: int = ALONE
    up: tuple[Reached, ...] = ()
    down: tuple[Order, ...] = ()

    @property
    def label(self) -> str:
        """As scripts name it: index, a dot, incarnation."""
        return f"{self.index}.{self.incarnation}"


class Entry(NamedTuple):
    """A pod with what others have of it: ids of the pod, of the coordinator in it (-1: none), and of the operator's view if
    that is not live (-1). `noticed`: the operator sees signs that it is lost."""

    pod: int
    coordinator: int = -1
    view: int = -1
    noticed: bool = False


class Operator(NamedTuple):
    """Between passes: ids of the status and of orders not carried out yet; `strays` are commands on the wire that are late."""

    status: int
    pending: tuple[int, ...] = ()
    strays: tuple[int, ...] = ()
    inventory: int = -1


class Store(NamedTuple):
    """A durable level: its copies (False: corrupt), and the attempts that it knows of."""

    copies: tuple[tuple[Copy, bool], ...] = ()
    records: History = ()


class Ghost(NamedTuple):
    """What the invariants remember. `memory`, `peers`, `stored`: the newest step promised at a level, while it has to be kept.

    `lost`: pods that were lost or damaged since `peers` was promised to `groups`. `sealed`: which ranks sealed a copy that not
    all have sealed yet; `whole`: copies that all have. `hurt`: whose parity of which copy was damaged, and not made anew since.
    """

    memory: Copy | None = None
    peers: Copy | None = None
    groups: tuple[Group, ...] = ()
    lost: frozenset[int] = frozenset()
    stored: Copy | None = None
    sealed: tuple[tuple[Copy, frozenset[int]], ...] = ()
    whole: frozenset[Copy] = frozenset()
    hurt: frozenset[tuple[int, Copy]] = frozenset()


State = tuple[int, ...]  # ids of operator, store, ghost, budget, then of the entries by index and incarnation
OPERATOR, STORE, GHOST, BUDGET, ENTRIES = 0, 1, 2, 3, 4
Action = tuple[Any, ...]  # kind, then what it is about: a pod's label, a number


class Violation(Exception):
    """A promise is broken. `promise` is its name."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


@dataclass(frozen=True, eq=False)
class World:
    """`steps` is the last step of the script (counted from 0), `lag` how many steps a rank may be ahead of another one's seal.

    `domains` are the nodes of the pods ("": each has its own). `faults`: how often each kind may happen, `most`: all together.
    `eager`: kinds of actions that are carried out as soon as they can be, so that their order is not explored in this world.
    """

    name: str
    about: str
    pods: int = 3
    group_size: int = 4
    parity: int = 1
    slots: int = 3
    steps: int = 2
    lag: int = 1
    stores: int = 0
    domains: tuple[str, ...] = ()
    faults: Mapping[str, int] = field(default_factory=dict)
    most: int = 99
    skips: bool = False
    eager: frozenset[str] = frozenset()
    limit: int = 5_000_000

    @property
    def peers(self) -> PeersConfig:
        """As the job's spec says it."""
        return PeersConfig(self.group_size, self.parity)

    def node(self, index: int) -> str:
        """Where a pod is at first."""
        return self.domains[index] if self.domains else f"n{index}"
