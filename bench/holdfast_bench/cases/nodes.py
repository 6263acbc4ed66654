"""What a dead node costs a job whose pods protect each other, on the local Kubernetes: seconds until it is noticed, and until
training goes on; the same with a spare.

A power-off takes the link first, then kills: no FIN or RST reaches anybody. Each sample is a job of its own, on nodes that are
all there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..context import Context
from ..model import Figure, Outcome, Row
from ..progress import say
from ..stats import median

if TYPE_CHECKING:
    from holdfast_demo.faults import Scene

    from ..cluster import Site

PEERS = {"groupSize": 3, "parity": 1}
LOAD_MINUTES = "HOLDFAST_BENCH_LOAD_MINUTES"
_LIMIT = 120.0  # seconds
_REFERENCE_STEPS = 300
_SHARED = "three nodes, all pods and the control plane share this machine's cores"


@dataclass(frozen=True)
class Cut:
    """One power-off: seconds until the operator acted and until the next finished step; protected steps that were lost."""

    noticed: float
    stepped: float
    lost: int
    level: str
    cause: str


def _protected(here: Site, scene: Scene, spares: int = 0) -> None:
    here.train(scene)
    scene.job.wait_condition("Protected", True, _LIMIT)
    if spares:
        scene.job.wait(lambda s: s.get("spares") == f"{spares}/{spares}", _LIMIT, "warm spares")


def _cut(here: Site, scene: Scene, node: str) -> Cut:
    from holdfast_demo import measure

    before = measure.look(scene.job)
    at = here.power_off(node)
    noticed = _next_attempt(scene, before.attempt) - at
    outcome = measure.recovery(scene.job, "power", before, at, _LIMIT)
    lost = max(0, before.saved.get("peers", -1) - outcome.resumed_step)
    return Cut(noticed, outcome.seconds, lost, outcome.level, outcome.note)


def _next_attempt(scene: Scene, before: int) -> float:
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        if scene.job.attempt > before:
            return time.time()
        time.sleep(0.02)
    raise RuntimeError(f"the dead node was not noticed in {_LIMIT:.0f} s: {scene.job.brief()}")


def _ready(here: Site, scene: Scene, spares: int = 0) -> str:
    """The node to cut once the job is protected: one with a rank on it, and without rank 0, whose log is the clock, without a
    spare and without the operator, which is moved if it must be."""
    from holdfast_demo import faults, setting

    _protected(here, scene, spares)
    pods = faults.running_pods(scene)
    ranks = {faults.node_of(p) for p in pods if _index(p) > 0}
    kept = {faults.node_of(p) for p in pods if _index(p) <= 0}
    operator = {faults.node_of(p) for p in setting.operators(scene.cluster, scene.release)}
    if not (free := sorted(ranks - kept)):
        raise RuntimeError(f"no node to power off: {scene.job.brief()}")
    if found := [node for node in free if node not in operator]:
        return found[0]
    faults.move_operator(scene, min(kept))
    _protected(here, scene, spares)
    return free[0]


def _index(pod: dict) -> int:  # type: ignore[type-arg]
    return int(pod["metadata"]["labels"].get("holdfast.dev/index", -1))


def _cuts(here: Site, count: int, **changes: object) -> list[Cut]:
    spares = int(changes.get("spares", 0))  # type: ignore[call-overload]
    found: list[Cut] = []
    for number in range(count):
        scene = here.start(here.spec(f"gpt-{number}{'s' if spares else ''}", peers=PEERS, **changes))
        try:
            found.append(_cut(here, scene, _ready(here, scene, spares)))
            say(f"  {found[-1]}")
            for node in sorted(here.dark):
                here.power_on(node)
        finally:
            here.end(scene)
    return found


def _same_weights(here: Site) -> bool:
    """Whether a job that loses a node on its way ends with the weights of one that does not; both without a store."""
    ends = []
    for name in ("plain", "faulted"):
        spec = here.spec(f"gpt-{name}", peers=PEERS, command=("python3", "/app/train.py", "--steps", str(_REFERENCE_STEPS)))
        scene = here.start(spec)
        try:
            if name == "faulted":
                _cut(here, scene, _ready(here, scene))
            scene.job.wait_phase("Succeeded", "Failed", limit=600)
            for node in sorted(here.dark):
                here.power_on(node)
            ends.append(_weights(scene))
        finally:
            here.end(scene)
    return ends[0] is not None and ends[0] == ends[1]


def _weights(scene: Scene) -> str | None:
    deadline = time.monotonic() + 20
    while scene.job.log.weights is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return scene.job.log.weights


def _figure(target: float, values: Sequence[float], holds: bool) -> Figure:
    value = median(list(values))
    return Figure(value, "s", f"<= {target:.0f} s, 0 protected steps lost", value <= target and holds, samples=list(values))


def _rows(cuts: Sequence[Cut], what: str) -> list[Row]:
    noticed, stepped = median([c.noticed for c in cuts]), median([c.stepped for c in cuts])
    causes = ", ".join(sorted({f"{c.cause} from {c.level}" for c in cuts}))
    return [
        Row(what, "until the operator acts", "s", noticed, note=_SHARED),
        Row(what, "until the next finished step", "s", stepped, note=causes),
    ]


def node_to_step(context: Context) -> Outcome:
    """Node powered off until the next training step is finished: three nodes, images present, state from peers, no store."""
    from ..cluster import site

    with site() as here:
        cuts = _cuts(here, context.samples)
        identical = _same_weights(here)
    good = identical and all(c.level == "peers" and not c.lost for c in cuts)
    details = {"cuts": [vars(c) for c in cuts], "bit_identical": identical}
    return Outcome(_figure(10.0, [c.stepped for c in cuts], good), _rows(cuts, "node powered off"), details)


def spare_to_step(context: Context) -> Outcome:
    """The same with a warm spare."""
    from ..cluster import site

    with site() as here:
        cuts = _cuts(here, context.samples, spares=1)
    good = all(c.level == "peers" and not c.lost for c in cuts)
    rows = _rows(cuts, "node powered off, one spare")
    return Outcome(_figure(5.0, [c.stepped for c in cuts], good), rows, {"cuts": [vars(c) for c in cuts]})


def detect_node(context: Context) -> Outcome:
    """Power-off until the operator acts; and whether half an hour at full load is ever taken for one."""
    from ..cluster import site

    minutes = float(os.environ.get(LOAD_MINUTES) or 30.0)
    with site() as here:
        scene = here.start(here.spec("gpt-loaded", peers=PEERS))
        node = _ready(here, scene)
        alarms = _under_load(scene, node, minutes * 60)
        here.end(scene)
        cuts = _cuts(here, context.samples)
    noticed = [c.noticed for c in cuts]
    value = median(noticed)
    target = f"<= 3 s, no false alarm in {minutes:.0f} min of a node at 100% CPU"
    figure = Figure(value, "s", target, value <= 3.0 and not alarms and minutes >= 30, samples=noticed)
    rows = [
        Row("node powered off", "until the operator acts", "s", value, note=_SHARED),
        Row(f"{minutes:.0f} min at 100% CPU", "false alarms", "", float(alarms), note=load()),
    ]
    return Outcome(figure, rows, {"alarms": alarms, "minutes": minutes})


def _loops() -> int:
    return os.cpu_count() or 1


def load() -> str:
    """What the node that must not be taken for dead is loaded with, in words."""
    count = _loops()
    return f"{count} busy loop{'s' if count > 1 else ''} in the node's namespaces"


def _under_load(scene: Scene, node: str, seconds: float) -> int:
    """Attempts that began while as many busy loops as there are cores ran in a node; 0 is what is wanted."""
    before, end = scene.job.attempt, time.monotonic() + seconds
    loop = f"import time; end = time.monotonic() + {seconds:.0f}\nwhile time.monotonic() < end: pass"
    loads = [_spawn(scene, node, loop) for _ in range(_loops())]
    try:
        while time.monotonic() < end:
            time.sleep(5.0)
            if scene.job.attempt > before:
                say(f"  false alarm: {scene.job.brief()}")
                break
    finally:
        for stop in loads:
            stop()
    return scene.job.attempt - before


def _spawn(scene: Scene, node: str, code: str) -> Callable[[], None]:
    from holdfast_demo.commands import ROOT

    command = [str(ROOT / "cluster" / "cluster"), "exec-node", node, "python3", "-c", code]
    process = subprocess.Popen(command, start_new_session=True)

    def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    return stop
