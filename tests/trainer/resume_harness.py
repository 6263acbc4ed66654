"""Run as a script: training runs of `kinds` that are killed at random moments and resumed, judged leaf by leaf.

    python resume_harness.py        then one JSON case a line on standard input, one JSON verdict a line on standard output

torch is imported once; each run, and each of its restarts, is a fork. The reference of a kind is a run without a Checkpointer:
its state after each step is what every resume is compared with, and the last of them what the killed run must end with. A
restart builds its job from another seed, so that what is not restored is seen. The parent kills: no thread of the victim has
to get its turn for it, so any instruction may be its last.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import holdfast
import numpy
import torch
from holdfast_core import arena

from trainer import kinds_of_jobs, kinds_of_state  # noqa: F401 - they register their kinds
from trainer.kinds import KINDS, MAY_DROP, Job
from trainer.leaves import Leaves, difference, leaves

STEPS = 14
_RUN_SECONDS = 60
_UNKNOWN = -2


@dataclass(frozen=True)
class Case:
    """One run, killed `kills` times; then it runs to the end."""

    seed: int
    kind: str
    mode: str
    width: int
    kills: int
    verify: bool = False


@dataclass
class Verdict:
    """`problem` is empty if all went as promised. `hits` counts kills between the begin and the seal of a slot."""

    problem: str = ""
    kills: int = 0
    hits: int = 0
    resumed: list[int] = field(default_factory=list)
    skipped: int = 0
    report: str = ""


@dataclass(frozen=True)
class Kill:
    """`delay` seconds after the snapshot of the `after`-th step of this attempt was called (-1: after the restore)."""

    after: int
    delay: float


NEVER = Kill(STEPS, 0)


class Words:
    """What a killed child leaves behind, in shared memory: a few numbers and a line of text."""

    NAMES = ("resumed", "begun", "sealed", "skipped")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self._words = memoryview(self._memory)[: 8 * len(self.NAMES)].cast("q")  # stores a word at once; struct clears it first
        for name, value in zip(self.NAMES, (_UNKNOWN, -1, -1, 0), strict=True):
            self[name] = value

    def __getitem__(self, name: str) -> int:
        return self._words[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.NAMES.index(name)] = value

    @property
    def text(self) -> str:
        return self._memory[mmap.PAGESIZE :].rstrip(b"\0").decode(errors="replace")

    @text.setter
    def text(self, value: str) -> None:
        self._memory[mmap.PAGESIZE :] = value.encode()[: mmap.PAGESIZE].ljust(mmap.PAGESIZE, b"\0")


class Bare(dict[str, Any]):
    """Stands for the Checkpointer in the reference."""

    def fence(self) -> None:
        return


def seed_everything(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def forked(body: Callable[[], None], words: Words) -> int:
    """The pid of a child that runs `body` and exits 0, or 1 with the error in `words.text`."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(_RUN_SECONDS)  # nobody else would end a child that hangs
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into the harness
        words.text = f"{type(error).__name__}: {error}"
        os._exit(1)
    os._exit(0)


@functools.cache
def reference(kind: str, width: int) -> tuple[list[Leaves], float]:
    """The state after each step of an undisturbed run, and the seconds that its steps took."""
    read_end, write_end = os.pipe()
    words = Words()

    def body() -> None:
        seed_everything(0)
        job, states, seconds = KINDS[kind](width), [], 0.0
        bare = Bare(job.given)
        for step in range(STEPS):
            start = time.monotonic()
            job.train(step, bare)
            seconds += time.monotonic() - start
            states.append(leaves(job, bare))
        with os.fdopen(write_end, "w") as out:
            json.dump([states, seconds], out)

    pid = forked(body, words)
    os.close(write_end)
    with os.fdopen(read_end) as text:
        raw = text.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError(f"{kind}: the reference run failed: {words.text}")
    states, seconds = json.loads(raw)
    return states, seconds


def draw_kill(draw: random.Random, seconds: float, attempt: int) -> Kill:
    """Half of them aim into a snapshot, the others anywhere."""
    if draw.random() < 0.5:
        return Kill(draw.randrange(1 if attempt else 3, 5), 10 ** draw.uniform(-4.5, -2))
    return Kill(-1, draw.uniform(0, 0.6 * seconds + 0.01))


def begin(case: Case, seed: int) -> tuple[Job, holdfast.Checkpointer, int]:
    seed_everything(seed)
    job = KINDS[case.kind](case.width)
    ckpt = holdfast.Checkpointer(**job.given)
    return job, ckpt, ckpt.restore()


def train(case: Case, attempt: int, kill: Kill, words: Words, events: int) -> None:
    """A child's life: restore, compare, go on to the end unless killed, compare again."""
    states, _ = reference(case.kind, case.width)
    job, ckpt, step = begin(case, attempt)
    if step < 0:  # from scratch, and then from the seed of the reference
        ckpt.close()
        job, ckpt, step = begin(case, 0)
    elif wrong := difference(leaves(job, ckpt), step, states):
        raise AssertionError(f"resumed after step {step} with another state: {wrong}")
    words["resumed"] = step
    if kill.after < 0:
        os.write(events, b"!")
    draw = random.Random(case.seed * 100 + attempt)
    for count, number in enumerate(range(step + 1, STEPS)):
        job.train(number, ckpt)
        words["begun"] = number
        if count == kill.after:
            os.write(events, b"!")
        taken = ckpt.snapshot(number)
        words["skipped"] += not taken
        if taken and draw.random() < 0.25 and ckpt.wait():
            words["sealed"] = number
    if wrong := difference(leaves(job, ckpt), STEPS - 1, states):
        raise AssertionError(f"at the end another state: {wrong}")
    finish(case, ckpt, words)


def finish(case: Case, ckpt: holdfast.Checkpointer, words: Words) -> None:
    """All captures end; the last one must have been sealed, unless this attempt took none."""
    sealed, report = ckpt.wait(), ckpt.report()
    words.text, words["skipped"] = str(report), report.skipped
    if sealed:
        words["sealed"] = words["begun"]
    elif words["begun"] >= 0 and case.kind not in MAY_DROP:
        raise AssertionError(f"the last snapshot was not sealed: {words.text}")
    ckpt.close()


def writing(folder: Path) -> set[tuple[str, int]]:
    """Slots that a copy was begun into and not sealed."""
    found = set()
    for path in folder.glob("*.arena"):
        with path.open("rb") as file:
            pages = file.read(arena.PAGE * 4)
        for index in range(3):
            if int.from_bytes(pages[arena.PAGE * (1 + index) :][:8], "little") == arena.SlotState.WRITING:
                found.add((path.name, index))
    return found


class Trial:
    """One case being tried: run, kill, run again until the run ends by itself; then once more, to restore the last step."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.verdict = case, folder, Verdict()
        self.sealed = self.begun = -1

    def run(self) -> Verdict:
        draw, seconds = random.Random(self.case.seed), reference(self.case.kind, self.case.width)[1]
        kills = [draw_kill(draw, seconds, attempt) for attempt in range(self.case.kills)]
        ended = 0
        for attempt in range(self.case.kills + 2):
            kill = kills[attempt] if attempt < self.case.kills and not ended else NEVER
            ended += not self._attempt(attempt, kill)
            if self.verdict.problem or ended == 2:
                break
        if self.verdict.skipped and self.case.kind not in MAY_DROP:
            self.verdict.problem = self.verdict.problem or f"{self.verdict.skipped} snapshots were skipped"
        return self.verdict

    def _attempt(self, attempt: int, kill: Kill) -> bool:
        """Whether it was killed."""
        words, before = Words(), writing(self.folder)
        killed, status = self._child(attempt, kill, words)
        verdict = self.verdict
        verdict.resumed.append(words["resumed"])
        verdict.skipped += words["skipped"]
        verdict.report = verdict.report or ("" if status else words.text)
        verdict.problem = self._problem(attempt, killed, status, words)
        verdict.kills += killed
        verdict.hits += killed and bool(writing(self.folder) - (before if words["sealed"] < 0 else set()))
        self.sealed, self.begun = max(self.sealed, words["sealed"]), max(self.begun, words["begun"])
        return killed

    def _child(self, attempt: int, kill: Kill, words: Words) -> tuple[bool, int]:
        read_end, write_end = os.pipe()
        pid = forked(functools.partial(train, self.case, attempt, kill, words, write_end), words)
        os.close(write_end)
        sent = False
        with os.fdopen(read_end, "rb", buffering=0) as events:
            if events.read(1):
                time.sleep(kill.delay)
                os.kill(pid, signal.SIGKILL)
                sent = True
        status = os.waitpid(pid, 0)[1]
        return sent and status == signal.SIGKILL, status

    def _problem(self, attempt: int, killed: bool, status: int, words: Words) -> str:
        resumed = words["resumed"]
        if status and not killed:
            return f"attempt {attempt} ended with status {status}: {words.text}"
        if resumed != _UNKNOWN and not self.sealed <= resumed <= self.begun:
            return f"attempt {attempt} resumed after step {resumed}; {self.sealed} was sealed and {self.begun} the newest begun"
        return ""


def judge(case: Case) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-resume-", dir="/dev/shm"))
    os.environ.update(HOLDFAST_DIR=str(folder), HOLDFAST_CAPTURE=case.mode, HOLDFAST_VERIFY=str(int(case.verify)))
    try:
        return Trial(case, folder).run()
    finally:
        shutil.rmtree(folder)


def main() -> None:
    torch.set_num_threads(1)
    import_module("torch._dynamo")  # optimizers import it at their first step, which takes seconds
    for line in sys.stdin:
        print(json.dumps(asdict(judge(Case(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
