"""A whole job of sidecar processes, and what the operator would order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast_core.config import StoreConfig
from holdfast_core.local import Attached
from holdfast_core.messages import AgentState, Command, Source
from holdfast_core.timeline import Copy, Resume

from .harness import FakeLauncher, FakeTrainer, Sidecar, eventually
from .images import content, read_content


class Pod:
    """A sidecar, its launcher, and its trainers."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.launcher = FakeLauncher(sidecar)
        self.trainers: list[FakeTrainer] = []

    def train(self, attempt: int, size: int = 100_000) -> None:
        for trainer in self.trainers:
            trainer.close()
        first = self.sidecar.config.first_rank
        ranks = range(first, first + self.sidecar.config.processes)
        self.trainers = [FakeTrainer(self.sidecar, rank, attempt, size) for rank in ranks]

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.close()
        self.launcher.close()
        self.sidecar.close()


class Job:
    """All pods, and what the operator would order."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = pods
        self.attempt = 0
        self.history: tuple[Resume, ...] = ()

    @property
    def sidecars(self) -> list[Sidecar]:
        return [pod.sidecar for pod in self.pods]

    def command(self, source: Source | None = None) -> Command:
        self.attempt += 1
        self.history = (*self.history, Resume(self.attempt, source.step if source else -1))
        members = tuple(s.member for s in self.sidecars)
        return Command("prepare", self.attempt, members, source, self.history, 29500, grace_seconds=0.2)

    def prepare(self, source: Source | None = None, phase: str = "prepared") -> None:
        command = self.command(source)
        for sidecar in self.sidecars:
            sidecar.order(command)
        self.wait(lambda s: s.attempt == self.attempt and s.phase in (phase, "failed"), phase)
        assert [s.state().phase for s in self.sidecars] == [phase] * len(self.pods), [s.state().error for s in self.sidecars]

    def prepare_in(self, domains: dict[int, str], source: Source | None = None) -> None:
        """The same, with the failure domains of the pods."""
        command = self.command(source)
        members = tuple(dataclasses.replace(m, domain=domains[m.index]) for m in command.members)
        for sidecar in self.sidecars:
            sidecar.order(dataclasses.replace(command, members=members))
        self.wait(lambda s: s.attempt == self.attempt and s.phase == "prepared", "prepared")

    def launch(self, size: int = 100_000) -> None:
        self.order("launch")
        self.wait(lambda s: s.phase == "running" and all(r.state == "running" for r in s.ranks), "running")
        for pod in self.pods:
            pod.train(self.attempt, size)

    def begin(self, source: Source | None = None, size: int = 100_000) -> None:
        self.prepare(source)
        self.launch(size)

    def order(self, kind: str, **more: object) -> None:
        for sidecar in self.sidecars:
            sidecar.order(Command(kind, self.attempt, **more))  # type: ignore[arg-type]

    def step(self, step: int) -> None:
        for pod in self.pods:
            for trainer in pod.trainers:
                trainer.snapshot(step)

    def run(self, first: int, last: int) -> None:
        """Steps that are all committed in memory, one after the other."""
        for step in range(first, last + 1):
            self.step(step)
            self.committed(step)

    def committed(self, step: int) -> None:
        self.wait(lambda s: s.committed is not None and s.committed.step == step, f"step {step} committed")

    def stored(self, store: str, step: int, seconds: float = 15) -> None:
        self.wait(lambda s: any(x.name == store and x.committed and x.committed.step >= step for x in s.stores),
                  f"step {step} in {store}", seconds)  # fmt: skip

    def wait(self, check: Callable[[AgentState], object], what: str, seconds: float = 15) -> None:
        for sidecar in self.sidecars:
            try:
                eventually(lambda s=sidecar: check(s.state()), seconds, what)
            except AssertionError as error:
                raise AssertionError(f"{error}; {self._told(sidecar)}\n{sidecar.log()}") from None

    def _told(self, sidecar: Sidecar) -> str:
        try:
            return str(sidecar.state())
        except OSError as error:
            return f"no answer: {error}"

    def close(self) -> None:
        for pod in self.pods:
            pod.close()


@contextlib.contextmanager
def closing(job: Job) -> Iterator[Job]:
    try:
        yield job
    finally:
        job.close()


def pvc(folder: Path, **more: object) -> StoreConfig:
    return StoreConfig("pvc", f"file://{folder}/pvc", **({"every_steps": 1} | more))  # type: ignore[arg-type]


def restored(job: Job, copy: Copy, size: int = 100_000) -> None:
    """Every trainer was given this step, byte for byte."""
    for pod in job.pods:
        for trainer in pod.trainers:
            assert isinstance(trainer.attached, Attached)
            got, data = read_content(trainer.attached.path, trainer.attached.slot)
            assert (got, data) == (copy, content(trainer.rank, copy.step, size))
