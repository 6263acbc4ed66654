"""A job's world in miniature, for testing the planner: pods, sidecars, ranks, stores, and faults; no clock but `now`.

It behaves as the real parts promise (fenced commands, slots that survive process deaths, manifests written last), and is
driven by the real `plan`. Invariants are checked at each tick: see `check`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from holdfast_core.arena import is_due
from holdfast_core.interval import Rule, Steps
from holdfast_core.messages import AgentState, Command, Inventory, RankState, Source, StoreInventory, StoreState
from holdfast_core.planner import CreatePod, DeletePod, EndPod, Inspect, Job, Observed, PodView, Send, Status, plan
from holdfast_core.timeline import Copy, Resume, is_valid

TICK = 0.25
SLOTS = 3
STORE_EVERY = 5


@dataclass
class Rank:
    state: str = "waiting"
    step: int = -1
    exit_code: int | None = None
    signal: int | None = None
    sealed: set[Copy] = field(default_factory=set)


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
    members: tuple[str, ...] = ()
    error: str = ""
    error_source: Source | None = None
    ranks: list[Rank] = field(default_factory=list)
    committed: Copy | None = None
    every: int = 0

    @property
    def up(self) -> bool:
        return self.kube == "Running" and self.dark is None


class World:
    """`steps` is the script's total; `stores` what each durable level holds."""

    def __init__(self, job: Job, steps: int = 40, seed: int = 0) -> None:
        self.job, self.steps, self.rng = job, steps, random.Random(seed)
        self.now, self.status = 1000.0, Status()
        self.pods: dict[str, Pod] = {}
        self.stores: dict[str, dict[Copy, bool]] = {name: {} for name in job.stores}  # False: corrupt
        self.records: dict[str, set[Resume]] = {name: set() for name in job.stores}
        self.store_error: dict[str, str] = {}
        self.inventory: tuple[int, Inventory] | None = None
        self.emitted: list[tuple[str, str]] = []
        self.resumed: list[Source | None] = []
        self.lose_actions = 0.0
        self.max_common = -1
        self.step_seconds: float | None = None  # what sidecars measure
        self.cost_seconds: float | None = None
        self.capture = ""
        self.orders: list[Command] = []
        self.look_again = 0.0

    # --- one turn of everything

    def tick(self, *, operator: bool = True) -> None:
        self.now += TICK
        self._kubelets()
        self._sidecars()
        self._train()
        if operator:
            self.reconcile()
        self.check()

    def reconcile(self) -> None:
        inventory = self.inventory[1] if self.inventory and self.inventory[0] == self.status.attempt else None
        observed = Observed(tuple(self._view(p) for p in self.pods.values()), inventory)
        decided = plan(self.job, observed, self.status, self.now)
        self.look_again = decided.look_again
        if decided.status.stage != self.status.stage:
            self.inventory = None
        if decided.status.stage == "preparing" and self.status.stage == "gathering":
            self.resumed.append(decided.status.source)
        self.status = decided.status
        for action in decided.actions:
            if self.rng.random() < self.lose_actions:
                continue
            self._apply(action)

    def run(self, until, limit: int = 2000, **kwargs) -> None:
        for _ in range(limit):
            self.tick(**kwargs)
            if until(self):
                return
        raise AssertionError(f"not reached in {limit} ticks: {self.status}")

    def run_to_step(self, step: int) -> None:
        self.run(lambda w: w.status.step >= step or w.status.terminal)
        assert not self.status.terminal, self.status.message

    def finish(self) -> None:
        self.run(lambda w: w.status.terminal, limit=6000)

    # --- faults

    def kill_rank(self, index: int, local: int = 0, *, signal: int | None = 9, code: int | None = None) -> None:
        rank = self.pod(index).ranks[local]
        if rank.state == "running":
            rank.state, rank.signal, rank.exit_code = "exited", signal, code

    def delete_pod(self, index: int, *, grace: float = 3.0, force: bool = False) -> None:
        pod = self.pod(index)
        if force:
            del self.pods[pod.name]
        else:
            pod.deleting = self.now + grace
            for rank in pod.ranks:
                self._end(rank, 15)

    def power_off(self, index: int) -> None:
        self.pod(index).dark = self.now

    def pod(self, index: int) -> Pod:
        return max((p for p in self.pods.values() if p.index == index), key=lambda p: p.incarnation)

    # --- behaviour of the parts

    @staticmethod
    def _end(rank: Rank, signal: int) -> None:
        if rank.state == "running":
            rank.state, rank.signal = "exited", signal

    def _kubelets(self) -> None:
        for pod in list(self.pods.values()):
            if pod.kube == "Pending" and self.now - pod.born > 1.0 and pod.dark is None:
                pod.kube = "Running"
            if pod.deleting is not None and self.now > pod.deleting and pod.dark is None:
                del self.pods[pod.name]

    def _sidecars(self) -> None:
        for pod in self.pods.values():
            if pod.up and pod.phase == "preparing":
                self._prepare(pod)

    def _prepare(self, pod: Pod) -> None:
        for rank in pod.ranks:
            rank.sealed = {c for c in rank.sealed if is_valid(c, pod.history)}
        source = pod.source
        if source is not None:
            copy = Copy(source.step, source.attempt)
            if source.level == "memory":
                good = all(copy in r.sealed for r in pod.ranks)
            else:
                good = source.level not in self.store_error and self.stores[source.level].get(copy, False)
            if not good:
                pod.phase, pod.error, pod.error_source = "failed", "checksum mismatch", source
                return
            for rank in pod.ranks:
                rank.sealed.add(copy)
        pod.committed = Copy(source.step, source.attempt) if source else None
        for rank in pod.ranks:
            rank.state, rank.exit_code, rank.signal = "waiting", None, None
            rank.step = source.step if source else -1
        pod.phase = "prepared"

    def _train(self) -> None:
        """One collective step, if every member of the newest attempt is there; ranks seal one by one."""
        attempt = max((p.attempt for p in self.pods.values()), default=0)
        group = [p for p in self.pods.values() if p.attempt == attempt]
        names = {p.name for p in group}
        if not group or any(set(p.members) != names or not p.up or p.phase != "running" for p in group):
            return
        ranks = [r for p in group for r in p.ranks]
        if len(ranks) != self.job.world_size or any(r.state != "running" for r in ranks):
            return
        step = min(r.step for r in ranks) + 1
        if step >= self.steps:
            for rank in ranks:
                rank.state, rank.exit_code = "exited", 0
            return
        stop_after = self.rng.randrange(len(ranks)) if self.rng.random() < 0.05 else len(ranks)
        every = [pod.every for pod in group for _ in pod.ranks]
        for number, rank in enumerate(ranks):
            rank.step = step
            if number < stop_after and (is_due(every[number], step) or step == self.steps - 1):
                self._seal(rank, Copy(step, attempt), group[0].committed)
        self._commit(group, attempt)

    @staticmethod
    def _seal(rank: Rank, copy: Copy, committed: Copy | None) -> None:
        old = sorted(c for c in rank.sealed if committed is None or c.step < committed.step)
        if len(rank.sealed) >= SLOTS:
            if not old or committed is None:
                return  # skipped
            rank.sealed.discard(old[0])
        rank.sealed.add(copy)

    def _commit(self, group: list[Pod], attempt: int) -> None:
        common = frozenset.intersection(*[frozenset(r.sealed) for p in group for r in p.ranks])
        mine = [c for c in common if is_valid(c, group[0].history)]
        if not mine:
            return
        newest = max(mine)
        for pod in group:
            pod.committed = newest
        if newest.step % STORE_EVERY == 0:
            self._persist(newest, attempt, group[0].history)

    def _persist(self, copy: Copy, attempt: int, history) -> None:
        for name, held in self.stores.items():
            if name in self.store_error:
                continue
            self.records[name] |= {r for r in history if r.attempt == attempt}
            held.setdefault(copy, True)

    # --- orders

    def _apply(self, action) -> None:
        if isinstance(action, CreatePod):
            name = self.job.pod_name(action.index, action.incarnation)
            ranks = [Rank() for _ in range(self.job.processes)]
            self.pods.setdefault(name, Pod(name, action.index, action.incarnation, action.index, self.now, ranks=ranks))
        elif isinstance(action, DeletePod) and action.name in self.pods:
            pod = self.pods[action.name]
            pod.deleting = pod.deleting or self.now + 1.0
        elif isinstance(action, EndPod) and action.name in self.pods:
            self.pods[action.name].kube = "Failed"
        elif isinstance(action, Inspect):
            self.inventory = (self.status.attempt, self._inventory())
        elif isinstance(action, Send):
            self._command(self.pods.get(action.pod), action.command)

    def _inventory(self) -> Inventory:
        found = []
        for name, held in self.stores.items():
            error = self.store_error.get(name, "")
            copies = () if error else tuple(held)
            found.append(StoreInventory(name, copies, tuple(sorted(self.records[name])), error=error))
        return Inventory(tuple(found))

    def _command(self, pod: Pod | None, command: Command) -> None:
        if pod is None or not pod.up or command.attempt < pod.attempt:
            return
        self._note_order(pod, command)
        if command.kind == "prepare" and command.attempt > pod.attempt:
            assert all(m.pod for m in command.members)
            for rank in pod.ranks:
                self._end(rank, 9)
            pod.attempt, pod.phase, pod.source, pod.history = command.attempt, "preparing", command.source, command.history
            pod.members, pod.error, pod.error_source = tuple(m.pod for m in command.members), "", None
        elif command.kind == "launch" and pod.phase == "prepared":
            pod.phase = "running"
            for rank in pod.ranks:
                rank.state = "running"
        elif command.kind == "stop":
            for rank in pod.ranks:
                self._end(rank, 9)
        elif command.kind == "persist" and pod.index == 0 and pod.committed is not None:
            self._persist(pod.committed, pod.attempt, pod.history)
        elif command.kind == "finish":
            pod.phase, pod.kube = "finished", "Succeeded"

    def _note_order(self, pod: Pod, command: Command) -> None:
        self.orders.append(command)
        if command.kind == "interval":
            assert pod.index == 0, "the coordinator tells the others"
            for member in self.pods.values():
                if member.attempt == command.attempt and member.up:
                    member.every = command.every or 0
        elif command.every is not None:
            pod.every = command.every

    # --- what the operator sees

    def _view(self, pod: Pod) -> PodView:
        heard = pod.kube == "Running"
        age = None if not heard else (0.1 if pod.dark is None else self.now - pod.dark)
        return PodView(
            pod.name, pod.index, pod.incarnation, phase=pod.kube, deleting=pod.deleting is not None, node=f"n{pod.node}",
            ip="10.0.0.1", port=7470, agent=self._agent(pod) if heard else None, agent_age=age,
            dial_failures=0 if pod.dark is None else 2,
        )  # fmt: skip

    def _agent(self, pod: Pod) -> AgentState:
        first = pod.index * self.job.processes
        ranks = tuple(
            RankState(first + i, r.state, exit_code=r.exit_code, signal=r.signal, step=r.step) for i, r in enumerate(pod.ranks)
        )
        sealed = {first + i: tuple(sorted(r.sealed)) for i, r in enumerate(pod.ranks)}
        newest = [max((c for c in held), default=None) for held in self.stores.values()]
        stores = tuple(
            StoreState(name, self.store_error.get(name, ""), committed=copy)
            for name, copy in zip(self.stores, newest, strict=True)
        )
        ended = pod.phase == "running" and all(r.state == "exited" for r in pod.ranks)
        return AgentState(
            self.job.uid, pod.name, pod.index, pod.attempt, "exited" if ended else pod.phase, launcher=True,
            error=pod.error, error_source=pod.error_source, ranks=ranks, sealed=sealed, committed=pod.committed, stores=stores,
            every=pod.every, step_seconds=self.step_seconds, cost_seconds=self.cost_seconds, capture=self.capture,
        )  # fmt: skip

    # --- the promises

    def check(self) -> None:
        """I3: whoever runs in one attempt resumed from the same step. I4: at most one attempt steps at a time."""
        by_attempt: dict[int, set[Source | None]] = {}
        for pod in self.pods.values():
            if pod.phase in ("prepared", "running") and pod.attempt:
                by_attempt.setdefault(pod.attempt, set()).add(pod.source)
        for attempt, found in by_attempt.items():
            assert len(found) == 1, f"attempt {attempt} resumes from different sources: {found}"

    def durable(self) -> int:
        """Newest step that a durable level holds."""
        return max((c.step for held in self.stores.values() for c, good in held.items() if good), default=-1)

    def forget_memory(self, index: int) -> None:
        for rank in self.pod(index).ranks:
            rank.sealed.clear()


def job(
    replicas: int = 3, processes: int = 1, stores: tuple[str, ...] = ("pvc", "s3"), every: Rule | None = None, **policy
) -> Job:
    made = Job("default", "gpt", "0123456789", replicas, processes, stores, every=every or Steps())
    return replace(made, policy=replace(made.policy, **policy))
