"""The local Kubernetes with an operator of its own, a namespace with storage, and training jobs in it; all goes afterwards.

    with site() as here:
        scene = here.start(here.spec("gpt", checkpoint={"every": {"steps": 1}}))
        here.train(scene)
        before = measure.look(scene.job)
        outcome = measure.recovery(scene.job, "power", before, here.power_off(faults.choose_node(scene)), 60)

A cluster that was up stays up; one that this run brought up goes down with it, also after an error or a Ctrl-C.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from holdfast_demo import setting
from holdfast_demo.clusters import Cluster
from holdfast_demo.errors import DemoError
from holdfast_demo.faults import Scene
from holdfast_demo.jobs import Spec
from holdfast_demo.kube import ApiError, Kube, Object
from holdfast_demo.setting import Release, Workspace
from holdfast_demo.site import JobSite
from holdfast_demo.waiting import wait_for

from ..environments import Unavailable
from ..progress import say

STEPS = 1_000_000  # more than any measurement lasts
_READY_SECONDS = 90.0


@dataclass(frozen=True)
class JobSpec(Spec):
    """A Spec whose `checkpoint` and `workers` are merged into those fields of the TrainingJob: for what `Spec` has no words."""

    checkpoint: Object = field(default_factory=dict)
    workers: Object = field(default_factory=dict)

    def manifest(self) -> Object:
        """See Spec."""
        made = super().manifest()
        made["spec"]["checkpoint"] |= self.checkpoint
        made["spec"]["workers"] |= self.workers
        return made


@dataclass
class Site(JobSite):
    """The set-up of one figure. `dark` are the nodes without power."""

    dark: set[str] = field(default_factory=set)

    @property
    def kube(self) -> Kube:
        """The API client."""
        return self.cluster.kube

    def spec(self, name: str, *arguments: str, **changes: object) -> JobSpec:
        """The GPT job of examples/gpt on three pods, without stores; keyword arguments replace fields of the JobSpec."""
        plain: dict[str, object] = {
            "name": name,
            "namespace": self.namespace,
            "image": setting.IMAGES["gpt"],
            "command": ("python3", "/app/train.py", "--steps", str(STEPS), *arguments),
            "torch_site": self.torch,
        }
        return JobSpec(**{**plain, **changes})  # type: ignore[arg-type]

    def train(self, scene: Scene, steps: int = 20, limit: float = 180) -> None:
        """Wait until a job trains and has finished some new steps. Raises WaitTimeout."""
        scene.job.wait_phase("Running", limit=limit)
        scene.job.wait_steps(steps, limit, time.time())

    def end(self, scene: Scene) -> None:
        """Delete a job, and wait until its pods are gone: they would take part in the next measurement."""
        super().end(scene)
        wait_for(lambda: not scene.job.pods(), 120, f"pods of {scene.job.name} to go", every=0.5)

    def power_off(self, node: str) -> float:
        """Cut a node's power, its link first; the moment right before. At the latest at the end it is powered on again."""
        self.dark.add(node)
        at = time.time()
        self.cluster.power_off(node)
        return at

    def power_on(self, node: str) -> None:
        """Boot a node again; waits until it is Ready."""
        self.cluster.power_on(node)
        wait_for(lambda: self.cluster.nodes_ready().get(node), _READY_SECONDS, f"{node} to be Ready again")
        self.dark.discard(node)

    def leave(self) -> None:
        """Take everything of this site from the cluster; never raises, each part is tried."""
        steps: list[tuple[str, Callable[[], object]]] = [(f"power on {n}", _call(self.power_on, n)) for n in sorted(self.dark)]
        for job in self.jobs:
            steps += [(f"stop following {job.name}", job.close), (f"delete {job.name}", job.delete)]
        steps.append((f"drop {self.namespace}", lambda: setting.drop_namespace(self.cluster, self.namespace, 120)))
        steps.append(("uninstall the operator", lambda: setting.uninstall(self.cluster, self.release)))
        for what, step in steps:
            _tried(what, step)


def _call(function: Callable[[str], None], argument: str) -> Callable[[], None]:
    return lambda: function(argument)


def _tried(what: str, step: Callable[[], object]) -> None:
    try:
        step()
    except (DemoError, ApiError) as error:
        say(f"  could not {what}: {error}")


@contextlib.contextmanager
def site(images: Sequence[str] = ("operator", "sidecar", "gpt"), extra: Sequence[str] = ()) -> Iterator[Site]:
    """Cluster, images, namespace, operator. `images`: of setting.IMAGES; `extra`: values for the chart (`name=value`).

    Raises Unavailable where the cluster is the user's, whose power is not ours to cut, and DemoError when something fails.
    """
    with _cluster() as cluster:
        namespace = f"holdfast-bench-{secrets.token_hex(2)}"
        release = Release("holdfast", "holdfast-bench-system", watch=(namespace,))
        for name in images:
            say(f"  image {name}: {setting.build_image(cluster, name)}")
        made = Site(cluster, release, Workspace(namespace), setting.torch_site())
        try:
            made.workspace = setting.make_workspace(cluster, namespace, "bench")
            setting.install(cluster, setting.IMAGES, release, extra=extra)
            yield made
        finally:
            made.leave()


@contextlib.contextmanager
def _cluster() -> Iterator[Cluster]:
    """The local cluster, up; left as it was found."""
    found = Cluster()
    if found.existing:
        raise Unavailable("cuts power and kills by pid: that needs the local cluster, unset CLUSTER")
    was_up = found.is_up()
    try:
        if not was_up:
            say("  bringing the cluster up")
            found.up()
        yield found
    finally:
        if not was_up:
            found.down()
