"""What the end-to-end tests stand on: one cluster, one release of the operator, one namespace, and the shared training job."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from holdfast_demo import measure, processes, setting
from holdfast_demo.clusters import Cluster
from holdfast_demo.commands import ROOT
from holdfast_demo.errors import DemoError
from holdfast_demo.faults import Scene
from holdfast_demo.jobs import Spec
from holdfast_demo.kube import Object
from holdfast_demo.measure import Before, Outcome
from holdfast_demo.setting import Release
from holdfast_demo.site import JobSite
from holdfast_demo.waiting import wait_for

from . import traces
from .traces import Traces

BUILD = ROOT / "build" / "e2e"
SCRIPTS = "scripts"
_WEIGHTS = re.compile(r"\bstep (\d+) weights ([0-9a-f]{16})\b")


class Site(JobSite):
    """The set-up shared by all tests of a session."""

    def spec(self, name: str, *arguments: str, **changes: object) -> Spec:
        """A job that runs script.py; keyword arguments replace fields of the Spec.

        Without peers' RAM, so that faults reach the level that a test is about: `test_6_nodes` is about peers.
        """
        plain: dict[str, object] = {
            "name": name,
            "namespace": self.namespace,
            "image": setting.PYTHON_IMAGE,
            "command": ("python3", "/script/script.py", *arguments),
            "stores": self.workspace.stores({"seconds": 2}, {"seconds": 4}),
            "torch_site": self.torch,
            "files": SCRIPTS,
            "restarts": {"limit": 500},
            "peers": {"parity": 0},
        }
        return Spec(**{**plain, **changes})  # type: ignore[arg-type]

    def events(self, scene: Scene) -> dict[str, str]:
        """{reason: newest message} of the events on a job."""
        found = sorted(scene.job.events(), key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
        return {str(e["reason"]): str(e["message"]) for e in found}

    def await_event(self, scene: Scene, reason: str, text: str = "") -> None:
        """Wait for an event that says this: it is posted after what it tells of is in the status."""

        def told() -> bool:
            return any(e["reason"] == reason and text in str(e["message"]) for e in scene.job.events())

        wait_for(told, 10, f"event {reason} {text}".rstrip(), seen=lambda: self.events(scene))

    def trace(self, job: str) -> Traces:
        """Collects the trace of a job that is about to start."""
        return Traces(_state(), self.namespace, job)

    def note_damage(self, scene: Scene, steps: Iterable[int]) -> None:
        """Snapshots of these steps were spoilt by the test: the trace of the job is to know it."""
        traces.note_damage(_state(), scene.job.name, scene.job.attempt, steps)

    def pvc_folder(self, scene: Scene) -> Path:
        """Where the shared disk has the job's folder, on this machine."""
        return _state() / "shared" / "volumes" / f"holdfast-{self.namespace}-{setting.CLAIM}" / self.namespace / scene.job.name

    def s3_folder(self, scene: Scene) -> Path:
        """Where the S3 server has the job's objects, on this machine."""
        bucket, _, prefix = self.workspace.url.removeprefix("s3://").partition("/")
        return _state() / "s3" / "data" / bucket / prefix / self.namespace / scene.job.name


def note_dark(scene: Scene, pods: Iterable[str]) -> None:
    """These pods have lost power: the trace of the job is to know it."""
    traces.note_dark(_state(), scene.job.name, scene.job.attempt, pods)


def _state() -> Path:
    from holdfast_cluster.config import paths_from_environment

    return paths_from_environment().state


def plan_site() -> tuple[str, Release]:
    """A new namespace's name, and an operator that watches only that."""
    namespace = f"holdfast-e2e-{secrets.token_hex(2)}"
    return namespace, Release("holdfast", "holdfast-e2e-system", watch=(namespace,))


def make_site(cluster: Cluster, namespace: str, release: Release) -> Site:
    """Images, namespace, operator."""
    for name in ("operator", "sidecar"):
        setting.build_image(cluster, name)
    workspace = setting.make_workspace(cluster, namespace, "e2e")
    trace = ("operator.extraEnv[0].name=HOLDFAST_TRACE", "operator.extraEnv[0].value=on")
    setting.install(cluster, setting.IMAGES, release, extra=trace)
    script = (Path(__file__).parent / "script.py").read_text()
    meta = {"name": SCRIPTS, "namespace": namespace}
    cluster.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"script.py": script}})
    return Site(cluster, release, workspace, setting.torch_site())


class Shared:
    """The long job that most faults hit. A test that ruins it costs the next one a new start, no more."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.scene: Scene | None = None
        self._number = 0

    def ready(self, steps: int = 10) -> Scene:
        """The job, training, with a few new steps and something saved at every level."""
        if self.scene is not None and not self._training(self.scene):
            self.site.end(self.scene)
            self.scene = None
        if self.scene is None:
            self._number += 1
            self.scene = self.site.start(self.site.spec(f"train-{self._number}"))
            self.scene.job.wait_phase("Running", limit=180)
        job = self.scene.job
        job.wait_steps(steps, 60, time.time())
        job.wait(lambda s: {"memory", "pvc", "s3"} <= set(s.get("checkpoints", {})), 60, "a checkpoint at every level")
        return self.scene

    def _training(self, scene: Scene) -> bool:
        try:
            scene.job.wait_phase("Running", limit=60)
            scene.job.wait_steps(3, 60, time.time())
        except DemoError:
            return False
        return True


Say = Callable[[str], None]


def recovery(scene: Scene, say: Say, kind: str, before: Before, at: float, limit: float) -> Outcome:
    """Wait for the recovery and say what was seen."""
    outcome = measure.recovery(scene.job, kind, before, at, limit)
    say(
        f"{kind}: level {outcome.level}, resumed from step {outcome.resumed_step}, {outcome.lost_steps} steps lost, "
        f"{outcome.seconds:.2f} s to the next finished step ({outcome.note})"
    )
    return outcome


def weights(scene: Scene) -> dict[int, set[str]]:
    """{step: hashes that rank 0 printed for it}: more than one would mean that a repeated step came out differently."""
    found: dict[int, set[str]] = {}
    for line in scene.job.log.lines:
        for step, value in _WEIGHTS.findall(line.text):
            found.setdefault(int(step), set()).add(value)
    return found


def restarts(scene: Scene) -> Object:
    """Counters of the status."""
    return dict(scene.job.status.get("restarts", {}))


def trainer_pids(scene: Scene, ranks: int = 3) -> list[int]:
    """Pids of all trainer processes on this machine, by rank."""
    return [processes.find_trainer(processes.container_id(scene.job.need_pod(r), "trainer"), r) for r in range(ranks)]
