"""A namespace with an operator that watches it, and the jobs that were started there."""

from __future__ import annotations

from dataclasses import dataclass, field

from .clusters import Cluster
from .faults import Scene
from .jobs import Job, Spec
from .setting import Release, Workspace


@dataclass
class JobSite:
    """`torch` is a folder of every node with torch in it; `jobs` are those that were not ended yet."""

    cluster: Cluster
    release: Release
    workspace: Workspace
    torch: str
    jobs: list[Job] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        """Where jobs go."""
        return self.workspace.namespace

    def start(self, spec: Spec) -> Scene:
        """Apply a job and follow its log."""
        job = Job(self.cluster.kube, self.namespace, spec.name)
        self.jobs.append(job)  # before it exists: what was applied half way is to be deleted too
        job.apply(spec)
        _ = job.log
        return Scene(self.cluster, self.release, job)

    def end(self, scene: Scene) -> None:
        """Delete a job."""
        scene.job.close()
        scene.job.delete()
        if scene.job in self.jobs:
            self.jobs.remove(scene.job)
