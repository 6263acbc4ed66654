"""A job's world in miniature, for testing the planner: pods, sidecars, ranks, stores, and faults; no clock but `now`.

It behaves as the real parts promise (fenced commands, slots that survive process deaths, manifests written last), and is
driven by the real `plan`. Invariants are checked at each tick: see `check`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from holdfast_core.arena import is_due
from holdfast_core.messages import (
    AgentState,
    Command,
    Inventory,
    Member,
    Parity,
    RankState,
    Source,
    StoreInventory,
    StoreState,
)
from holdfast_core.planner import (
    CreatePod,
    CreateSpare,
    DeletePod,
    Emit,
    EndPod,
    Inspect,
    Job,
    Observed,
    PodView,
    Send,
    Status,
    plan,
)
from holdfast_core.protection import Holdings, groups_of, rank_groups
from holdfast_core.timeline import Copy, Resume, is_valid

from .world_parts import Pod, Rank

TICK = 0.25
SLOTS = 3
STORE_EVERY = 5


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
        self.keeps_up = 1.0  # how many of the committed steps get parity
        self.orders: list[Command] = []
        self.look_again = 0.0
        self.room: list[int] = []  # nodes for pods that may not go to their own, which has the number of their index

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
            if isinstance(action, Emit):
                self.emitted.append((action.reason, action.message))
            if self.rng.random() < self.lose_actions:
                continue
            self._apply(action)

    def run(self, until, limit: int = 2000, **kwargs) -> None:
        for _ in range(limit):
            self.tick(**kwargs)
            if until(self):
                return
        raise AssertionError(f"not reached in {limit} ticks: {self.status}")

    def emitted_text(self, reason: str) -> str:
        return "\n".join(text for kind, text in self.emitted if kind == reason)

    def run_to_step(self, step: int) -> None:
        self.run(lambda w: w.status.step >= step or w.status.terminal)
        assert not self.status.terminal, self.status.message

    def live(self, rng: random.Random, fault: Callable[[World, random.Random], None]) -> None:
        """A few faults, each some ticks after the job runs again; the operator misses one tick in five."""
        for _ in range(rng.randrange(1, 8)):
            self.run(lambda w: w.status.stage == "running" or w.status.terminal, limit=4000)
            for _ in range(rng.randrange(0, 60)):
                self.tick(operator=rng.random() < 0.8)
            if self.status.terminal:
                break
            fault(self, rng)

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
        return max((p for p in self.pods.values() if p.index == index), key=lambda p: p.joined)

    # --- behaviour of the parts

    @staticmethod
    def _end(rank: Rank, signal: int) -> None:
        if rank.state == "running":
            rank.state, rank.signal = "exited", signal

    def _kubelets(self) -> None:
        for pod in list(self.pods.values()):
            if pod.kube == "Pending" and self.now - pod.born > 1.0 and pod.dark is None and pod.node >= 0:
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
            rank.parity = {p for p in rank.parity if is_valid(p.copy, pod.history)}
        source = pod.source
        if source is not None:
            copy = Copy(source.step, source.attempt)
            for local, rank in enumerate(pod.ranks):
                level = pod.levels.get(pod.index * len(pod.ranks) + local, "memory" if pod.levels else source.level)
                if not self._can_load(pod, local, copy, level):
                    pod.phase, pod.error, pod.error_source = "failed", "checksum mismatch", replace(source, level=level)
                    return
                rank.sealed.add(copy)
                rank.kept = copy if source.level == "peers" else rank.kept
        pod.committed = Copy(source.step, source.attempt) if source else None
        for rank in pod.ranks:
            rank.state, rank.exit_code, rank.signal = "waiting", None, None
            rank.step = source.step if source else -1
        pod.phase = "prepared"

    def _can_load(self, pod: Pod, local: int, copy: Copy, level: str) -> bool:
        if copy in pod.ranks[local].sealed:
            return True
        if level == "peers":
            return self.holdings().rebuildable(pod.index * len(pod.ranks) + local, copy)
        return level in self.stores and level not in self.store_error and self.stores[level].get(copy, False)

    def holdings(self) -> Holdings:
        """What is in the RAM of pods that are up."""
        pods = [p for p in self.pods.values() if p.up and p.index >= 0]
        ranks = {p.index * len(p.ranks) + i: r for p in sorted(pods, key=lambda p: p.joined) for i, r in enumerate(p.ranks)}
        return Holdings({n: tuple(r.sealed) for n, r in ranks.items()}, {n: tuple(r.parity) for n, r in ranks.items()})

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
        old = sorted(c for c in rank.sealed - {rank.kept} if committed is None or c.step < committed.step)
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
        if self.job.peers.parity and self.rng.random() < self.keeps_up:
            self._protect(group, newest)
        if newest.step % STORE_EVERY == 0:
            self._persist(newest, attempt, group[0].history)

    def _protect(self, group: list[Pod], copy: Copy) -> None:
        members = [Member(p.index, p.name, "h", 1, p.index * len(p.ranks), len(p.ranks), f"n{p.node}") for p in group]
        codewords = rank_groups(groups_of(members, self.job.peers), members)
        for pod in group:
            for local, rank in enumerate(pod.ranks):
                codeword = codewords.get(pod.index * len(pod.ranks) + local)
                rank.parity = {Parity(copy, *codeword)} if codeword else set()
                rank.kept = copy

    def _persist(self, copy: Copy, attempt: int, history) -> None:
        for name, held in self.stores.items():
            if name in self.store_error:
                continue
            self.records[name] |= {r for r in history if r.attempt == attempt}
            held.setdefault(copy, True)

    # --- orders

    def _apply(self, action) -> None:
        if isinstance(action, CreatePod):
            name, node = self.job.pod_name(action.index, action.incarnation), self._node(action.index)
            ranks = [Rank() for _ in range(self.job.processes)]
            made = Pod(name, action.index, action.incarnation, node, self.now, ranks=ranks, joined=self.now)
            self.pods.setdefault(name, made)
        elif isinstance(action, CreateSpare):
            name, node = self.job.spare_name(action.number), 100 + action.number
            self.pods.setdefault(name, Pod(name, -1, 1, node, self.now, spare=action.number))
        elif isinstance(action, DeletePod) and action.name in self.pods:
            pod = self.pods[action.name]
            pod.deleting = pod.deleting or self.now + 1.0
        elif isinstance(action, EndPod) and action.name in self.pods:
            self.pods[action.name].kube = "Failed"
        elif isinstance(action, Inspect):
            self.inventory = (self.status.attempt, self._inventory())
        elif isinstance(action, Send):
            self._command(self.pods.get(action.pod), action.command)

    def _node(self, own: int) -> int:
        """Where the scheduler puts a pod; -1: nowhere."""
        avoided = {a.node for a in self.status.avoided}
        return next((n for n in (own, *self.room) if f"n{n}" not in avoided), -1)

    def _adopt(self, pod: Pod, members: tuple[Member, ...]) -> None:
        """A spare learns its index from the first order that names it."""
        pod.index = next(m.index for m in members if m.pod == pod.name)
        pod.ranks, pod.joined = [Rank() for _ in range(self.job.processes)], self.now

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
            self._begin(pod, command)
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

    def _begin(self, pod: Pod, command: Command) -> None:
        assert all(m.pod for m in command.members)
        if pod.index < 0:
            self._adopt(pod, command.members)
        for rank in pod.ranks:
            self._end(rank, 9)
        pod.attempt, pod.phase, pod.source, pod.history = command.attempt, "preparing", command.source, command.history
        pod.levels = command.levels
        pod.members, pod.error, pod.error_source = tuple(m.pod for m in command.members), "", None

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
        node = f"n{pod.node}" if pod.node >= 0 else ""
        dark = self.now - pod.dark if pod.dark is not None else 0.0
        return PodView(
            pod.name, -1 if pod.spare else pod.index, pod.incarnation, phase=pod.kube, deleting=pod.deleting is not None,
            node=node, domain=node, ip="10.0.0.1", port=7470, agent=self._agent(pod) if heard else None, agent_age=age,
            dial_failures=2 if dark > 3.0 else 0, unanswered=int(dark / 0.75), spare=pod.spare, age=self.now - pod.born,
            waiting="" if node else "Unschedulable: 0/3 nodes are available",
        )  # fmt: skip

    def _silent(self, pod: Pod) -> dict[int, float]:
        """Members that a pod hears nothing of; a pod without power says nothing itself."""
        dark = [p for p in self.pods.values() if p.name in pod.members and p.dark is not None and pod.up]
        return {p.index: self.now - p.dark for p in dark if self.now - p.dark > 1.0}

    def _agent(self, pod: Pod) -> AgentState:
        first = pod.index * self.job.processes
        if pod.index < 0:  # a spare: whatever it says of ranks, they are others'
            return AgentState(self.job.uid, pod.name, pod.index, 0, launcher=True, sealed={0: ()}, parity={0: ()})
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
            parity={first + i: tuple(r.parity) for i, r in enumerate(pod.ranks)},
            protected=pod.ranks[0].kept if pod.ranks else None, silent=self._silent(pod),
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
            rank.parity.clear()
            rank.kept = None
