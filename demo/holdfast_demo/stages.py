"""The demo from an empty machine to the last recovery: each stage takes what the one before made."""

from __future__ import annotations

import itertools
import math
import os
import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import measure, report, setting
from .clusters import Cluster
from .errors import DemoError
from .faults import Scene
from .jobs import Job, Spec
from .kube import Object
from .measure import Outcome
from .progress import Progress
from .report import Skipped
from .scenario import FAULTS, Fault, everything
from .setting import Release, Workspace
from .steplog import Sample

STEPS = 450
MIN_TRAINING = 45.0  # seconds: the faults need about this much training between them
_BETWEEN = 20  # new steps between a recovery and the next fault
_PVC_EVERY = {"seconds": 3}
_S3_EVERY = {"seconds": 6}


@dataclass(frozen=True)
class Prepared:
    """The cluster with everything on it that a job needs."""

    cluster: Cluster
    release: Release
    workspace: Workspace
    images: dict[str, str]
    torch_site: str


def prepare(cluster: Cluster, release: Release, progress: Progress) -> Prepared:
    """Images, operator, namespace; the cluster is up."""
    if cluster.existing:
        images, site = setting.existing_images(), os.environ.get("HOLDFAST_TORCH_SITE", "")
    else:
        images, site = _build(cluster, progress), setting.torch_site()
    with progress.stage("operator", "helm install charts/holdfast"):
        setting.install(cluster, images, release)
    if not cluster.existing:
        progress.say("metrics", f"Prometheus scrapes operator and sidecars: {cluster.prometheus()}")
    with progress.stage("job", "namespace, secret and claim"):
        workspace = setting.make_workspace(cluster, f"holdfast-demo-{secrets.token_hex(2)}", "demo")
    return Prepared(cluster, release, workspace, images, site)


def _build(cluster: Cluster, progress: Progress) -> dict[str, str]:
    for name in setting.IMAGES:
        with progress.stage("images", f"{name}: build from the Dockerfile, load into every node"):
            progress.say("images", setting.build_image(cluster, name))
    return dict(setting.IMAGES)


def job_spec(prepared: Prepared, name: str, steps: int) -> Spec:
    """The GPT job of examples/gpt on three pods."""
    return Spec(
        name=name,
        namespace=prepared.workspace.namespace,
        image=prepared.images["gpt"],
        command=("python3", "/app/train.py", "--steps", str(steps)),
        stores=prepared.workspace.stores(_PVC_EVERY, _S3_EVERY),
        torch_site=prepared.torch_site,
    )


@dataclass(frozen=True)
class Run:
    """A finished run: hash of the final weights, rank 0's steps, seconds a step (median)."""

    weights: str | None
    samples: Sequence[Sample]
    step_seconds: float
    goodput: float | None = None


def plain_run(prepared: Prepared, progress: Progress, steps: int) -> tuple[Run, int]:
    """The reference without faults, and how many steps it made: more than asked for where that is over too soon."""
    for number in range(3):
        with progress.stage("reference", f"GPT on three pods, {steps} steps, no faults"):
            run = _whole(prepared, f"gpt-plain-{number}" if number else "gpt-plain", steps)
        progress.say("reference", f"{run.step_seconds:.3f} s a step, weights {_short(run.weights)}")
        if run.step_seconds * steps >= MIN_TRAINING * 0.8:
            break
        steps = math.ceil(MIN_TRAINING * 1.1 / run.step_seconds)
        progress.say("reference", f"this machine is fast: {steps} steps, so that the faults find the job training")
    return run, steps


def _whole(prepared: Prepared, name: str, steps: int) -> Run:
    job = Job(prepared.cluster.kube, prepared.workspace.namespace, name)
    try:
        job.apply(job_spec(prepared, name, steps))
        _ = job.log
        job.wait(lambda s: s.get("phase") == "Running", 300, "to train")
        job.wait_phase("Succeeded", "Failed", limit=120 + 2.0 * steps)
        return finished(job)
    finally:
        job.close()
        job.delete()


def finished(job: Job) -> Run:
    """What a job that has ended left behind. Raises DemoError if it failed."""
    status = job.status
    if status.get("phase") != "Succeeded":
        raise DemoError(f"{job.name} did not succeed: {job.brief()}")
    deadline = time.monotonic() + 10
    while job.log.weights is None and time.monotonic() < deadline:
        time.sleep(0.1)
    samples = job.log.samples
    return Run(job.log.weights, samples, _pace(samples), status.get("goodput"))


def _pace(samples: Sequence[Sample]) -> float:
    gaps = [b.time - a.time for a, b in itertools.pairwise(samples) if b.step == a.step + 1]
    return statistics.median(gaps) if gaps else 0.0


def _short(weights: str | None) -> str:
    return f"{weights[:16]}..." if weights else "unknown"


@dataclass
class Faulty:
    """The run with faults, as far as it has come."""

    scene: Scene
    steps: int
    outcomes: list[Outcome]
    skipped: list[Skipped]


def begin_faulty(prepared: Prepared, steps: int) -> Faulty:
    """Apply the job that the faults will hit."""
    job = Job(prepared.cluster.kube, prepared.workspace.namespace, "gpt")
    job.apply(job_spec(prepared, "gpt", steps))
    _ = job.log
    return Faulty(Scene(prepared.cluster, prepared.release, job), steps, [], [])


def break_it(faulty: Faulty, prepared: Prepared, progress: Progress) -> None:
    """One fault after another. Raises WaitTimeout when one is not recovered from in time."""
    job = faulty.scene.job
    job.wait(lambda s: s.get("phase") == "Running", 300, "to train")
    since = time.time()
    for fault in _fitting(prepared.workspace):
        if fault.local and prepared.cluster.existing:
            faulty.skipped.append(Skipped(fault.kind, fault.local))
            progress.say("skipped", f"{fault.kind}: {fault.local}")
            continue
        _ready_for_next(job, since, faulty.steps)
        before = measure.look(job)
        progress.say("fault", f"{fault.kind}, at step {before.step}")
        outcome = everything(faulty.scene, fault, before)
        since = time.time()
        faulty.outcomes.append(outcome)
        progress.say("recovered" if not outcome.problem else "NOT OK", "  ".join(filter(None, report.row(outcome)[1:])))


def _fitting(workspace: Workspace) -> list[Fault]:
    """Where there is only one kind of store, it serves what the other would have."""
    stores = [name for name, there in (("pvc", workspace.claim), ("s3", workspace.url)) if there]
    if len(stores) == 2:
        return list(FAULTS)
    in_ram = (("memory",), ("peers",), ("none",))
    return [replace(f, levels=f.levels if f.levels in in_ram else ("memory", "peers", *stores)) for f in FAULTS]


def _ready_for_next(job: Job, since: float, steps: int) -> None:
    """Enough new steps, something saved at every level, and parity with all peers."""
    job.wait_steps(_BETWEEN, 120, since)
    wanted = len((job.resource or {}).get("spec", {}).get("checkpoint", {}).get("stores", ()))
    job.wait(lambda s: len(s.get("checkpoints", {})) > wanted + 1, 120, "a checkpoint at every level")
    job.wait(protected_as_far_as_nodes_go, 120, "parity in peers' RAM")
    if job.log.step > steps - _BETWEEN or job.status.get("phase") == "Succeeded":
        raise DemoError(f"the job ended (step {job.log.step} of {steps}) before all faults were tried: give a higher --steps")


def protected_as_far_as_nodes_go(status: Object) -> bool:
    """Whether peers hold parity. Pods that share a node since another was lost do not move back when it returns."""
    found: Object = next((c for c in status.get("conditions", ()) if c["type"] == "Protected"), {})
    return found.get("status") == "True" or found.get("reason") == "SharedNode"


def end_faulty(faulty: Faulty) -> Run:
    """Wait for the faulty job's end."""
    faulty.scene.job.wait_phase("Succeeded", "Failed", limit=120 + 2.0 * faulty.steps)
    return finished(faulty.scene.job)
