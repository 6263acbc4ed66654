"""Breadth first through all states of a world. The first broken promise that is met lies at the end of a shortest script."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from . import liveness
from .model import Model
from .world import Action, State, Violation, World

Progress = Callable[["Result"], None]
_GOOD, _SEEN, _UNKNOWN = -1, -2, -3  # instead of a next state


@dataclass
class Result:
    """What an exploration found. `complete`: all states of the world were seen; `script` leads to the violation."""

    world: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = False
    violation: str = ""
    script: list[Action] = field(default_factory=list)


@dataclass
class Explorer:
    """One exploration. `limit`: states."""

    world: World
    limit: int = 0
    progress: Progress = lambda _: None

    def run(self) -> Result:
        """See `_run`. Millions of small values, none in a circle: the collector would look through them in vain."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> Result:
        """Until everything is seen, a promise is broken, or the limit is reached. From each state that was seen training must
        go on: that is followed in the end, when it is known where each one's most urgent step leads."""
        self.model = Model(self.world)
        self._states: list[State] = []
        self._known: dict[State, int] = {}
        self._parents, self._actions, self._next = array("i"), array("i"), array("i")
        self._numbers: dict[Action, int] = {}
        self._good: set[State] = set()
        self.result, self._started = Result(self.world.name), time.perf_counter()
        limit, at, level = self.limit or self.world.limit, 0, 1
        self._add(self.model.start, -1, ("start",))
        while at < len(self._states) < limit and not self.result.violation:
            if at == level:
                self.result.depth, level = self.result.depth + 1, len(self._states)
            self._expand(at)
            at += 1
            if at % 20_000 == 0:
                self._count()
                self.progress(self.result)
        self.result.complete = at == len(self._states) and not self.result.violation
        if not self.result.violation:
            self._follow()
        self._count()
        return self.result

    def _count(self) -> None:
        self.result.states, self.result.seconds = len(self._states), time.perf_counter() - self._started

    def _add(self, state: State, parent: int, action: Action) -> int:
        at = self._known[state] = len(self._states)
        self._states.append(state)
        self._parents.append(parent)
        self._actions.append(self._numbers.setdefault(action, len(self._numbers)))
        self._next.append(_UNKNOWN)
        return at

    def _expand(self, at: int) -> None:
        steps, faults = self.model.actions(self._states[at])
        for number, action in enumerate((*steps, *faults)):
            try:
                after = self._visit(at, action)
            except Violation as broken:
                self._broken(at, [action], str(broken))
                return
            if number == 0 and steps:
                self._next[at] = after
        if not steps:
            self._end(at)

    def _visit(self, at: int, action: Action) -> int:
        state = self.model.apply(self._states[at], action)
        self.result.transitions += 1
        found = self._known.get(state)
        if found is None:
            self.model.check(state)
            found = self._add(state, at, action)
        return found

    def _end(self, at: int) -> None:
        """Nothing more happens here, unless by a fault."""
        self._next[at] = _GOOD
        problem = liveness.wrong(self.model, self._states[at])
        if problem:
            self._broken(at, [], f"Liveness: nothing more happens, but {problem}")

    def _follow(self) -> None:
        for start in range(len(self._states)):
            path, at = [], start
            while self._next[at] >= 0 and not self.result.violation:
                path.append(at)
                self._next[at], at = _SEEN, self._next[at]
            if self._next[at] == _SEEN and not self.result.violation:
                self._broken(at, [], "Liveness: it goes round in circles")
            if self._next[at] == _UNKNOWN:
                self._beyond(at)
            for seen in path:
                self._next[seen] = _GOOD

    def _beyond(self, at: int) -> None:
        """A state that the limit left unexplored."""
        self._next[at] = _GOOD
        problem, rest = liveness.outcome(self.model, self._states[at], self._good)
        if problem and not self.result.violation:
            self._broken(at, rest, problem)

    def _broken(self, at: int, rest: list[Action], text: str) -> None:
        names = {number: action for action, number in self._numbers.items()}
        script: list[Action] = []
        while at > 0:
            script.append(names[self._actions[at]])
            at = self._parents[at]
        self.result.violation, self.result.script = text, [*reversed(script), *rest]
