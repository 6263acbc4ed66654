"""observe -> plan -> apply for a job of one local pod, with the planner that the operator uses."""

from __future__ import annotations

import re
import signal
import time
import types
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from holdfast_core.config import SidecarConfig, StoreConfig
from holdfast_core.interval import Rule, Steps
from holdfast_core.messages import Command, Inventory
from holdfast_core.planner import (
    Action,
    CreatePod,
    Emit,
    Inspect,
    Job,
    Observed,
    PodView,
    Policy,
    Send,
    Status,
    plan,
)

from .._log import Once, note
from ..errors import HoldfastError
from .agent import Agent
from .pod import Pod
from .ports import free_port
from .screen import Screen

_INTERRUPTED_GRACE = 5.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """What the user asked for. `store` is an absolute path or None."""

    command: Sequence[str]
    name: str
    processes: int
    policy: Policy
    store: str | None = None
    every_seconds: float = 60.0
    keep: int = 3
    verbose: bool = False
    every: Rule = field(default_factory=Steps)


def run(options: Options) -> int:
    """Run the job to its end; returns the script's exit code, or 128 + n when we were ended by signal n."""
    driver = Driver(options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, driver.interrupt)
    return driver.run()


class Driver:
    """See the module."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._uid = uuid.uuid4().hex
        stores = ("store",) if options.store else ()
        name = re.sub(r"[^a-z0-9-]", "-", options.name.lower()).strip("-")[:40] or "job"
        self._job = Job("local", name, self._uid, 1, options.processes, stores, options.policy, options.every)
        self._status = Status()
        self._screen = Screen(options.verbose)
        self._once = Once()
        self._pod: Pod | None = None
        self._agent: Agent | None = None
        self._incarnation = 0
        self._inventory: tuple[int, Inventory] | None = None
        self._ports: dict[int, int] = {}
        self._exit_code = 1
        self._signal = 0

    def interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """SIGINT or SIGTERM: end in order; a second one: at once."""
        if self._signal and self._pod is not None:
            self._pod.kill()
        self._signal = number

    def run(self) -> int:
        """See `run` of the module."""
        try:
            while not self._status.terminal and not self._signal:
                self._pass()
            if self._signal:
                note(f"{signal.Signals(self._signal).name}: stopping")
            return self._leave()
        except HoldfastError as error:
            note(str(error))
            return 1
        finally:
            if self._agent is not None:
                self._agent.close()
            if self._pod is not None:
                self._pod.remove()
            self._screen.close()

    def _pass(self) -> None:
        decided = plan(self._job, self._observe(), self._status, time.time())
        self._status = decided.status
        for action in decided.actions:
            self._apply(action)
        self._screen.progress(self._status)
        if self._pod is not None and self._agent is not None:
            self._agent.poll(min(decided.look_again, _LOOK_SECONDS), self._screen.pipe)
            self._screen.pump()
            self._pod.look_after(ending=self._status.stage in ("finishing", "done"))
            self._watch()

    def _observe(self) -> Observed:
        if self._pod is None or self._agent is None:
            return Observed()
        ended = self._status.stage == "finishing" and self._pod.finished is not None
        phase = "Succeeded" if ended else "Running"
        view = PodView(
            self._job.pod_name(0, self._incarnation), 0, self._incarnation, phase,
            node="this machine", ip="127.0.0.1", port=1, agent=self._agent.state, agent_age=self._agent.age,
            dial_failures=self._agent.dial_failures, refused=self._agent.dial_failures > 0,
        )  # fmt: skip
        asked = self._inventory
        return Observed((view,), asked[1] if asked and asked[0] == self._status.attempt else None)

    def _apply(self, action: Action) -> None:
        if isinstance(action, CreatePod):
            self._create(action.incarnation)
        elif isinstance(action, Emit):
            self._screen.event(action)
        elif self._agent is not None and isinstance(action, Send):
            self._agent.command(self._with_free_port(action.command))
        elif self._agent is not None and isinstance(action, Inspect):
            inventory = self._agent.inventory()
            if inventory is not None:
                self._inventory = (self._status.attempt, inventory)

    def _create(self, incarnation: int) -> None:
        if incarnation == self._incarnation:
            return
        if self._pod is not None:
            self._pod.remove()
        self._incarnation = incarnation
        self._pod = Pod(self._config(), self._options.command, self._screen.output, self._options.verbose)
        self._agent = Agent(self._pod.api)

    def _config(self) -> SidecarConfig:
        options = self._options
        stores = tuple(
            StoreConfig(name, f"file://{options.store}", every_seconds=options.every_seconds, keep=options.keep)
            for name in self._job.stores
        )
        return SidecarConfig(
            self._uid, self._job.name, self._job.namespace, self._job.pod_name(0, self._incarnation), 0, 0,
            options.processes, options.processes, stores=stores, tls_dir="", metrics_port=0,
            drain_seconds=options.policy.drain_deadline,
        )  # fmt: skip

    def _with_free_port(self, command: Command) -> Command:
        """On a machine that others use too, MASTER_PORT is whatever is free; one for each attempt."""
        if command.kind != "prepare":
            return command
        if command.attempt not in self._ports:
            self._ports[command.attempt] = free_port()
        return replace(command, master_port=self._ports[command.attempt])

    def _watch(self) -> None:
        """Things that the user must know, once; and the exit code that counts if the job fails."""
        state = self._agent.state if self._agent else None
        if state is None:
            return
        if state.arena_error:
            self._once.note("memory", f"no snapshots in memory: {state.arena_error}")
        for store in state.stores:
            if store.error:
                self._once.note(store.error, f"store {self._options.store}: {store.error}; training goes on, trying again")
        failed = [r for r in state.ranks if r.signal or r.exit_code]
        if failed:
            first = min(failed, key=lambda r: (r.signal is None, r.rank))
            self._exit_code = 128 + first.signal if first.signal else first.exit_code or 1

    def _leave(self) -> int:
        if self._pod is not None:
            self._pod.stop(_INTERRUPTED_GRACE if self._signal else self._options.policy.grace)
        if self._signal:
            return 128 + self._signal
        return 0 if self._status.phase == "Succeeded" else self._exit_code
