"""One state taken apart, to be changed and put together again; and the tables and memories that all states of a model share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from holdfast_core.planner import PodView, Status
from holdfast_core.planner.types import Action as Order

from . import operator
from .tables import Table
from .world import BUDGET, DARK, ENTRIES, GHOST, OFF, OPERATOR, STORE, UP, Entry, Ghost, Operator, Pod, State, Store, World

Budget = tuple[int, ...]


class Shared:
    """Tables of a model, and what was worked out before."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kinds = tuple(sorted(world.faults))
        self.pods: Table[Pod] = Table()
        self.groups: Table[Any] = Table()
        self.views: Table[operator.View] = Table()
        self.seen: Table[PodView] = Table(lambda view: view.name)  # never asked by value: see `operator_sees`
        self.entries: Table[Entry] = Table()
        self.statuses: Table[Status] = Table(operator.key)
        self.orders: Table[Order] = Table(operator.key)
        self.operators: Table[Operator] = Table()
        self.stores: Table[Store] = Table()
        self.ghosts: Table[Ghost] = Table()
        self.budgets: Table[Budget] = Table()
        self.checked: set[Hashable] = set()
        self._labels: list[str] = []
        self._memory: dict[Hashable, Any] = {}

    def once(self, work: Callable[..., Any], *given: Any) -> Any:
        """`work(*given)`, worked out once for the same values."""
        key = (work, given)
        found = self._memory.get(key)
        if found is None:
            found = self._memory[key] = work(*given)
        return found

    def step(self, work: Callable[..., Pod], pod: int, *given: Any) -> int:
        """The id of the pod that `work` makes of another one."""
        key = (work, pod, given)
        found = self._memory.get(key)
        if found is None:
            found = self._memory[key] = self.pods.id(work(self.pods.values[pod], *given))
        return int(found)

    def label(self, pod: int) -> str:
        """Of a pod by id."""
        if pod >= len(self._labels):
            self._labels += [p.label for p in self.pods.values[len(self._labels) :]]
        return self._labels[pod]


class Scene:
    """A state. Change its parts, then ask for `state`."""

    def __init__(self, shared: Shared, state: State) -> None:
        self.shared, self.world, self._before = shared, shared.world, state
        self.operator = self._operator = shared.operators.values[state[OPERATOR]]
        self.store = self._store = shared.stores.values[state[STORE]]
        self.ghost = self._ghost = shared.ghosts.values[state[GHOST]]
        self.budget = shared.budgets.values[state[BUDGET]]
        self.entries = [shared.entries.values[e] for e in state[ENTRIES:]]

    @property
    def state(self) -> State:
        """All of it as numbers."""
        shared, before = self.shared, self._before
        return (
            before[OPERATOR] if self.operator is self._operator else shared.operators.id(self.operator),
            before[STORE] if self.store is self._store else shared.stores.id(self.store),
            self.ghost_id,
            shared.budgets.id(self.budget),
            *(shared.entries.id(e) for e in self.entries),
        )

    @property
    def ghost_id(self) -> int:
        """Of what the promises remember."""
        return self._before[GHOST] if self.ghost is self._ghost else self.shared.ghosts.id(self.ghost)

    # --- pods

    @property
    def places(self) -> range:
        """Of all pods."""
        return range(len(self.entries))

    def pod(self, k: int) -> Pod:
        """By place."""
        return self.shared.pods.values[self.entries[k].pod]

    def label(self, k: int) -> str:
        """By place."""
        return self.shared.label(self.entries[k].pod)

    def put(self, k: int, pod: Pod) -> None:
        """Change one."""
        self.entries[k] = self.entries[k]._replace(pod=self.shared.pods.id(pod))

    def step(self, k: int, work: Callable[..., Pod], *given: Any) -> None:
        """Change one by a function of it alone."""
        self.entries[k] = self.entries[k]._replace(pod=self.shared.step(work, self.entries[k].pod, *given))

    def add(self, pod: Pod) -> None:
        """A new one; places follow index and incarnation."""
        self.entries.append(Entry(self.shared.pods.id(pod)))
        pods = self.shared.pods.values
        self.entries.sort(key=lambda e: (pods[e.pod].index, pods[e.pod].incarnation))

    def find(self, label: str) -> int | None:
        """Its place."""
        for k, entry in enumerate(self.entries):
            if self.shared.label(entry.pod) == label:
                return k
        return None

    def at(self, label: str) -> int:
        """Its place; raises KeyError if there is none."""
        k = self.find(label)
        if k is None:
            raise KeyError(label)
        return k

    def group(self, k: int) -> Any:
        """The coordinator in it, or None."""
        number = self.entries[k].coordinator
        return self.shared.groups.values[number] if number >= 0 else None

    def put_group(self, k: int, group: Any) -> None:
        """Change it."""
        self.entries[k] = self.entries[k]._replace(coordinator=self.shared.groups.id(group) if group is not None else -1)

    @staticmethod
    def reaches(a: Pod, b: Pod) -> bool:
        """Whether bytes get from one pod to the other."""
        return a.net == b.net and (a.net == UP or (a.net == DARK and a.node == b.node))

    def leader(self, k: int) -> int | None:
        """The place of the pod whose coordinator this one belongs to, if that is there and of the same attempt."""
        pod = self.pod(k)
        at = self.find(pod.prepare.members[0].host) if pod.prepare is not None else None
        if at is None or self.entries[at].coordinator < 0:
            return None
        return at if self.pod(at).prepare == pod.prepare else None

    def followers(self, k: int) -> list[int]:
        """The places of those who are connected to a coordinator."""
        return [e for e in self.places if self.pod(e).link and self.leader(e) == k]

    def peers(self, k: int) -> dict[int, int]:
        """Places of the other members of its attempt that answer and are in it too, by index."""
        pod, found = self.pod(k), {}
        assert pod.prepare is not None
        for member in pod.prepare.members:
            e = self.find(member.host) if member.index != pod.index else None
            if e is not None and self.pod(e).attempt == pod.attempt and self.reaches(pod, self.pod(e)):
                found[member.index] = e
        return found

    # --- operator

    @property
    def status(self) -> Status:
        """The planner's."""
        return self.shared.statuses.values[self.operator.status]

    def current(self) -> dict[int, int]:
        """Places of the pods that count, by index."""
        wanted = {(w.index, w.incarnation) for w in self.status.workers}
        return {p.index: k for k in self.places for p in (self.pod(k),) if (p.index, p.incarnation) in wanted}

    def away(self) -> frozenset[int]:
        """Indexes whose pods are not there, or can't be reached."""
        current = self.current()
        return frozenset(i for i in range(self.world.pods) if i not in current or self.pod(current[i]).net != UP)

    def decided(self) -> int:
        """The newest attempt whose source is decided."""
        return max((r.attempt for r in self.status.history), default=0)

    # --- budget

    def left(self, kind: str) -> int:
        """How often a fault may still happen."""
        if not self.budget[-1] or kind not in self.shared.kinds:
            return 0
        return self.budget[self.shared.kinds.index(kind)]

    def spend(self, kind: str) -> None:
        """It happens. When nothing more may happen at all, what is left of each kind is of no interest."""
        at, total = self.shared.kinds.index(kind), self.budget[-1] - 1
        spent = (*self.budget[:at], self.budget[at] - 1, *self.budget[at + 1 : -1], total)
        self.budget = spent if total else (0,) * len(spent)


def first(world: World, shared: Shared) -> State:
    """Nothing there but the job."""
    status = shared.statuses.id(operator.settled(Status()))
    budget = (*(world.faults[kind] for kind in shared.kinds), min(world.most, sum(world.faults.values())))
    return (
        shared.operators.id(Operator(status)), shared.stores.id(Store()), shared.ghosts.id(Ghost()), shared.budgets.id(budget),
    )  # fmt: skip


def dead(pod: Pod) -> Pod:
    """Its node lost power: nothing is left, but for what others remember of it."""
    left = Pod(pod.index, pod.incarnation, pod.node, net=OFF, deleting=pod.deleting, link=pod.link)
    return left._replace(attempt=pod.attempt, prepare=pod.prepare) if pod.link else left
