"""What the planner sees, remembers and orders: plain frozen values, no behaviour beyond small look-ups.

Times are seconds since the epoch (`now` is an argument of `plan`); ages and idle times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config import PeersConfig
from ..interval import Interval, Rule, Steps
from ..messages import AgentState, Command, Inventory, Source
from ..timeline import History


@dataclass(frozen=True)
class Policy:
    """The job's limits.

    `lost_after`: silence of a sidecar before its pod is judged lost; `confirm_after`: the same, if its peers confirm that it is
    gone. A node that `node_limit` failures were attributed to within `node_window` is avoided (0: none is). `force_delete`:
    pods of a dead node are deleted without waiting for its kubelet.
    """

    restart_limit: int = 20
    restart_window: float = 3600.0
    no_progress_limit: int = 3
    startup_deadline: float = 600.0
    hang_deadline: float = 300.0
    prepare_deadline: float = 180.0
    lost_after: float = 5.0
    confirm_after: float = 2.0
    drain_deadline: float = 20.0
    grace: float = 5.0
    node_limit: int = 2
    node_window: float = 3600.0
    force_delete: bool = False


@dataclass(frozen=True)
class Job:
    """The part of a TrainingJob's spec that decisions depend on. `stores` are names, in the user's order.

    `topology` is the label of nodes whose value is a pod's failure domain; `spares` are pods that wait without a rank.
    """

    namespace: str
    name: str
    uid: str
    replicas: int
    processes: int = 1
    stores: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    every: Rule = field(default_factory=Steps)
    peers: PeersConfig = field(default_factory=lambda: PeersConfig(parity=0))
    topology: str = "kubernetes.io/hostname"
    spares: int = 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replicas * self.processes

    def pod_name(self, index: int, incarnation: int) -> str:
        """Name of a pod; new for each incarnation, so that nothing waits for one stuck Terminating."""
        return f"{self.name}-{self.uid[:5]}-{index}-{incarnation}"

    def spare_name(self, number: int) -> str:
        """Name of a spare's pod; numbers are used once."""
        return f"{self.name}-{self.uid[:5]}-s{number}-1"


@dataclass(frozen=True)
class PodView:
    """A pod of the job as observed now. `waiting` is the kubelet's or scheduler's reason with its message.

    `agent` is the last state received from this pod's sidecar, `agent_age` how long ago; `refused` means that the last dial
    was answered by a refusal: the pod's network is alive, its sidecar is not. While a stream is silent the operator knocks at
    the pod: `answers` if the last knock was answered in whatever way, which the node's kernel does even if its processes get no
    CPU; `unanswered` counts those in a row that were not. `spare` is the number of a pod that came without a rank (0: an
    ordinary one); such a pod has index -1 until `roster` gives it one.
    """

    name: str
    index: int
    incarnation: int
    phase: str = "Pending"
    deleting: bool = False
    node: str = ""
    ip: str = ""
    port: int = 0
    age: float = 0.0
    waiting: str = ""
    agent: AgentState | None = None
    agent_age: float | None = None
    dial_failures: int = 0
    refused: bool = False
    node_ready: bool | None = None
    node_lease_age: float | None = None
    domain: str = ""
    answers: bool = False
    unanswered: int = 0
    spare: int = 0

    def fresh(self, within: float) -> bool:
        """Whether its sidecar was heard within that many seconds."""
        return self.agent_age is not None and self.agent_age <= within


@dataclass(frozen=True)
class Observed:
    """One look at the world. `pods` must be complete: a pod that was seen and is missing counts as gone.

    `inventory` is the stores' answer for the current attempt, if one was asked for.
    """

    pods: tuple[PodView, ...] = ()
    inventory: Inventory | None = None


@dataclass(frozen=True)
class Worker:
    """Which incarnation of a pod counts. `seen`: it existed, so that its absence means that it is gone. `spare`: the number of
    the spare that took the index, 0 if none did."""

    index: int
    incarnation: int = 1
    seen: bool = False
    spare: int = 0


@dataclass(frozen=True)
class Spare:
    """A pod that waits without a rank. `seen` as in Worker."""

    number: int
    seen: bool = False


@dataclass(frozen=True)
class NodeFailure:
    """A failure that is attributed to a node. `silence`: seconds without a word when it was judged."""

    node: str
    time: float
    reason: str
    silence: float = 0.0


@dataclass(frozen=True)
class Avoided:
    """A node that new pods are kept from, until `until` if it does not fail again."""

    node: str
    count: int
    reason: str
    since: float
    until: float


@dataclass(frozen=True)
class Cause:
    """Why an attempt ended. `evidence` is quoted from what was observed."""

    reason: str
    message: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """A finished recovery: level and step that served, steps lost, seconds from fault to the next finished step."""

    attempt: int
    cause: str
    message: str
    level: str
    step: int
    lost_steps: int
    seconds: float
    time: float
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class LevelStatus:
    """Newest step committed at a level and when that was first seen."""

    step: int
    time: float


@dataclass(frozen=True)
class Protection:
    """What peers' RAM protects now: how many failure domains may be lost at once, whichever they are, without losing `step`.

    `message` says it in words, and why if it is none.
    """

    faults: int
    step: int
    message: str


@dataclass(frozen=True)
class Restarts:
    """How often processes were restarted in place, pods replaced, and the whole set of pods lost."""

    process: int = 0
    pod: int = 0
    job: int = 0


@dataclass(frozen=True)
class Condition:
    """As in Kubernetes; `since` is the time of the last change of `status`."""

    type: str
    status: bool
    reason: str
    message: str
    since: float = 0.0


@dataclass(frozen=True)
class Status:
    """All that the planner remembers between passes; kept in the resource's status, written before any action.

    `stage` of the attempt: new, gathering, preparing, launching, running, draining, completing, finishing, done.
    `levels` are those of ranks that do not take the source's step from their own memory. `reached` is the furthest step
    that all ranks finished in any attempt. `doubted` sources could not be had once, for a reason that may have passed;
    those that are `excluded` too could not be had twice. `brought` are the bytes that the pods had brought by `brought_at`.
    `terminated_at`: when a rank of this attempt was seen to have ended by SIGTERM. `failures` are times of faults, for
    `interval`. `spares` wait, `spare_count` is the highest number of one so far. `dead_pods` were given up because they
    could not be reached, `once_avoided` are nodes that are or were in `avoided`.
    """

    phase: str = "Pending"
    stage: str = "new"
    attempt: int = 0
    stage_since: float = 0.0
    source: Source | None = None
    levels: Mapping[int, str] = field(default_factory=dict)
    history: History = ()
    excluded: tuple[Source, ...] = ()
    doubted: tuple[Source, ...] = ()
    brought: int = 0
    brought_at: float = 0.0
    workers: tuple[Worker, ...] = ()
    cause: Cause | None = None
    failed_at: float | None = None
    lost_at_step: int = -1
    step: int = -1
    reached: int = -1
    restarts: Restarts = field(default_factory=Restarts)
    recent_failures: tuple[float, ...] = ()
    failures: tuple[float, ...] = ()
    no_progress: int = 0
    no_progress_step: int = -1
    checkpoints: Mapping[str, LevelStatus] = field(default_factory=dict)
    last_recovery: Recovery | None = None
    recoveries: int = 0
    first_step_at: float | None = None
    running_since: float | None = None
    terminated_at: float | None = None
    lost_seconds: float = 0.0
    goodput: float | None = None
    ready: int = 0
    completed_at: float | None = None
    interval: Interval | None = None
    capture: str = ""
    protection: Protection | None = None
    spares: tuple[Spare, ...] = ()
    spare_count: int = 0
    spares_ready: int = 0
    dead_pods: tuple[str, ...] = ()
    node_failures: tuple[NodeFailure, ...] = ()
    avoided: tuple[Avoided, ...] = ()
    once_avoided: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    message: str = ""

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class CreatePod:
    """Create this incarnation; does nothing if it exists."""

    index: int
    incarnation: int


@dataclass(frozen=True)
class CreateSpare:
    """Create this spare; does nothing if it exists."""

    number: int


@dataclass(frozen=True)
class DeletePod:
    """Delete a pod that no longer counts. `force`: without waiting for its kubelet."""

    name: str
    reason: str
    force: bool = False


@dataclass(frozen=True)
class EndPod:
    """Stop a pod for good but keep the object and its logs (the job failed)."""

    name: str


@dataclass(frozen=True)
class TaintNode:
    """Keep all pods that do not tolerate it off a node, if the operator may; does nothing if it did."""

    node: str


@dataclass(frozen=True)
class UntaintNode:
    """Take this job's taint off a node; does nothing if there is none."""

    node: str


@dataclass(frozen=True)
class Send:
    """Give a sidecar an order."""

    pod: str
    command: Command


@dataclass(frozen=True)
class Inspect:
    """Ask a sidecar what the stores hold; the answer comes with a later observation."""

    pod: str


@dataclass(frozen=True)
class Emit:
    """An event on the job. `warning` decides its type."""

    reason: str
    message: str
    warning: bool = False


Action = CreatePod | CreateSpare | DeletePod | EndPod | TaintNode | UntaintNode | Send | Inspect | Emit


@dataclass(frozen=True)
class Plan:
    """What to remember, then what to do, and when to look again at the latest (seconds)."""

    status: Status
    actions: tuple[Action, ...]
    reason: str
    look_again: float = 1.0
