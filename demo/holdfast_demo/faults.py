"""The faults: each breaks one real thing and returns the moment at which it broke. Shared by the demo and the end-to-end tests.

Recovery is awaited and measured elsewhere (`measure`); what a fault leaves broken is mended by its counterpart.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import processes, setting
from .clusters import Cluster
from .errors import DemoError
from .jobs import Job
from .kube import Object
from .setting import Release
from .waiting import wait_for

SIDECAR = "holdfast-sidecar"
_MID_RECOVERY = ("gathering", "preparing", "launching")


@dataclass(frozen=True)
class Scene:
    """Where faults happen: the cluster, the operator's release, the job."""

    cluster: Cluster
    release: Release
    job: Job


def signal_rank(scene: Scene, rank: int, number: int) -> float:
    """A signal to the process that trains as `rank` (one rank a pod)."""
    return processes.kill_trainer(scene.cluster, scene.job.need_pod(rank), rank, number)


def kill_rank(scene: Scene, rank: int) -> float:
    """SIGKILL of a trainer process: what the kernel's OOM killer does."""
    return signal_rank(scene, rank, signal.SIGKILL)


def segfault(scene: Scene, rank: int) -> float:
    """SIGSEGV of a trainer process: what a broken native extension does."""
    return signal_rank(scene, rank, signal.SIGSEGV)


def kill_sidecar(scene: Scene, index: int) -> float:
    """SIGKILL of a sidecar container's main process."""
    return processes.kill_main(scene.job.need_pod(index), SIDECAR)


def delete_pod(scene: Scene, index: int) -> float:
    """`kubectl delete pod` with its own grace period."""
    name = scene.job.need_pod(index)["metadata"]["name"]
    at = time.time()
    scene.job.kube.delete("Pod", scene.job.namespace, name)
    return at


def delete_all_pods(scene: Scene) -> float:
    """Every pod of the job at once, by force."""
    names = [p["metadata"]["name"] for p in scene.job.pods()]
    at = time.time()
    for name in names:
        scene.job.kube.delete("Pod", scene.job.namespace, name, grace=0)
    return at


def node_of(pod: Object) -> str:
    """The node that a pod runs on."""
    return str(pod["spec"].get("nodeName", ""))


def live_pods(scene: Scene) -> list[Object]:
    """Pods that are not on their way out. One whose node was lost is listed until the node is back, and the job has
    long gone on without it.
    """
    return [p for p in scene.job.pods() if "deletionTimestamp" not in p["metadata"]]


def running_pods(scene: Scene) -> list[Object]:
    """Those of them that run."""
    return [p for p in live_pods(scene) if p["status"].get("phase") == "Running"]


def choose_node(scene: Scene, avoid_rank: int | None = 0) -> str:
    """A node with a trainer on it, but neither the operator nor rank `avoid_rank`."""
    taken = {node_of(p) for p in setting.operators(scene.cluster, scene.release)}
    if avoid_rank is not None:
        taken.add(node_of(scene.job.need_pod(avoid_rank)))
    free = sorted({node_of(p) for p in running_pods(scene)} - taken - {""})
    if not free:
        raise DemoError("every node with a trainer also has the operator or rank 0: the cluster needs three nodes")
    return free[-1]


def power_off(scene: Scene, node: str) -> float:
    """Cut a node's power. The moment is taken before: the link goes first, and fast."""
    at = time.time()
    scene.cluster.power_off(node)
    return at


def power_on(scene: Scene, node: str, limit: float = 90) -> None:
    """Boot it again and wait until it is Ready and the job's replaced pods are gone from it."""
    scene.cluster.power_on(node)
    wait_for(lambda: scene.cluster.nodes_ready().get(node), limit, f"{node} to be Ready again")
    wait_for(lambda: not stale_pods(scene), limit, "replaced pods to be gone", every=0.5, seen=lambda: stale_pods(scene))


def stale_pods(scene: Scene) -> list[str]:
    """Names of pods that are being deleted or have been replaced."""
    pods = scene.job.pods()
    newest = [scene.job.pod(i) for i in sorted({int(p["metadata"]["labels"]["holdfast.dev/index"]) for p in pods})]
    keep = {p["metadata"]["name"] for p in newest if p}
    return sorted({str(p["metadata"]["name"]) for p in pods} - keep)


def kill_operator(scene: Scene) -> float:
    """SIGKILL of the operator's process; in a cluster out of reach, its pod is deleted by force."""
    pod = setting.operator(scene.cluster, scene.release)
    if not scene.cluster.existing:
        return processes.kill_main(pod, "operator")
    at = time.time()
    scene.cluster.kube.delete("Pod", scene.release.namespace, pod["metadata"]["name"], grace=0)
    return at


def kill_operator_in_recovery(scene: Scene, rank: int, tries: int = 3) -> tuple[float, str]:
    """SIGKILL of a trainer, then of the operator as soon as the status shows the next attempt under way.

    Returns the time of the trainer's death, and the stage in which the operator died. A recovery that is over before it could
    be caught is tried again.
    """
    for _ in range(tries):
        pid = _operator_pid(scene)
        before = scene.job.attempt
        at = kill_rank(scene, rank)
        stage = _catch(scene, before)
        if stage:
            processes.kill(pid, signal.SIGKILL) if pid else kill_operator(scene)
            return at, stage
        scene.job.wait_steps(5, 60, time.time())
    raise DemoError("the recoveries were over too fast for the operator to be killed in the middle of one")


def _operator_pid(scene: Scene) -> int | None:
    if scene.cluster.existing:
        return None
    return processes.main_pid(processes.container_id(setting.operator(scene.cluster, scene.release), "operator"))


def _catch(scene: Scene, before: int, limit: float = 15.0) -> str:
    """The stage of the new attempt while it is under way; empty once it runs."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        status = scene.job.status
        if int(status.get("attempt", 0)) > before:
            stage = str(status.get("stage", ""))
            return stage if stage in _MID_RECOVERY else ""
        time.sleep(0.01)
    return ""


def operator_ready(scene: Scene, limit: float = 90) -> None:
    """Wait until the operator is up again."""

    def ready() -> bool:
        pods = setting.operators(scene.cluster, scene.release)
        return any(c["type"] == "Ready" and c["status"] == "True" for p in pods for c in p["status"].get("conditions", ()))

    wait_for(ready, limit, "the operator to be ready again")


def scale_operator(scene: Scene, replicas: int) -> None:
    """Take the operator away (0) or bring it back (1)."""
    name = operator_deployment(scene)
    kube = scene.cluster.kube
    kube.patch("Deployment", scene.release.namespace, name, {"spec": {"replicas": replicas}})
    if replicas:
        operator_ready(scene)
    else:
        wait_for(lambda: not _operator_pods(scene), 60, "the operator to be gone")


@contextmanager
def only(scene: Scene, node: str) -> Iterator[None]:
    """For a while, pods are scheduled onto this node alone."""
    others = [name for name in scene.cluster.nodes_ready() if name != node]
    scene.cluster.kubectl("cordon", *others)
    try:
        yield
    finally:
        scene.cluster.kubectl("uncordon", *others)


def move_operator(scene: Scene, node: str) -> None:
    """Take the operator away and bring it back on this node."""
    scale_operator(scene, 0)
    with only(scene, node):
        scale_operator(scene, 1)


def _operator_pods(scene: Scene) -> Sequence[Object]:
    return scene.cluster.kube.list("Pod", scene.release.namespace, f"app.kubernetes.io/instance={scene.release.name}")


def operator_deployment(scene: Scene) -> str:
    """Name of the operator's Deployment."""
    selector = f"app.kubernetes.io/instance={scene.release.name}"
    return str(scene.cluster.kube.list("Deployment", scene.release.namespace, selector)[0]["metadata"]["name"])
