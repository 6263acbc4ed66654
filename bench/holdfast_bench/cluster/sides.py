"""The two sides of the comparison on a cluster: a TrainingJob, and a PyTorchJob that trains the same model."""

from __future__ import annotations

import secrets
import time

from holdfast_demo import faults, measure, processes, setting
from holdfast_demo.errors import DemoError
from holdfast_demo.measure import Before
from holdfast_demo.steplog import StepLog
from holdfast_demo.waiting import wait_for

from . import kubeflow
from .sites import Site
from .story import DELETE, KILL, Back, resumed

_KILLED, _DELETED = 1, 2  # ranks
_STORE_STEPS = 10  # both save to the shared disk as often


class Ours:
    """A TrainingJob: memory and peers' memory after every step, the shared disk every ten."""

    def __init__(self, site: Site) -> None:
        self._site = site
        stores = (site.workspace.stores({"steps": _STORE_STEPS}, {})[0],)
        self._scene = site.start(site.spec(f"gpt-{secrets.token_hex(2)}", stores=stores))
        self._before = Before(0, -1)

    @property
    def log(self) -> StepLog:
        """See Side."""
        return self._scene.job.log

    def strike(self, kind: str) -> float:
        """See Side."""
        self._before = measure.look(self._scene.job)
        if kind == KILL:
            return faults.kill_rank(self._scene, _KILLED)
        if kind == DELETE:
            return faults.delete_pod(self._scene, _DELETED)
        return self._site.power_off(faults.choose_node(self._scene))

    def back(self, kind: str, at: float, limit: float) -> Back:
        """See Side."""
        outcome = measure.recovery(self._scene.job, kind, self._before, at, limit)
        return Back(outcome.resumed_at, outcome.lost_steps, f"from {outcome.level}, {outcome.lost_steps} steps lost")

    def end(self) -> None:
        """See Side."""
        _mend(self._site)
        self._site.end(self._scene)


class Theirs:
    """A PyTorchJob: torch.save to the shared disk every ten steps."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._job = kubeflow.PyTorchJob(site, f"gpt-{secrets.token_hex(2)}")

    @property
    def log(self) -> StepLog:
        """See Side."""
        return self._job.log

    def strike(self, kind: str) -> float:
        """See Side."""
        if kind == KILL:
            return processes.kill_main(self._job.pod(_KILLED), kubeflow.CONTAINER)
        if kind == DELETE:
            pod = self._job.pod(_DELETED)["metadata"]["name"]
            at = time.time()
            self._site.kube.delete("Pod", self._site.namespace, pod)
            return at
        return self._site.power_off(self._node())

    def _node(self) -> str:
        """A node with a trainer on it, but neither rank 0 nor their operator; rather not ours either."""
        taken = kubeflow.operator_nodes(self._site.kube) | {faults.node_of(self._job.pod(0))}
        free = {faults.node_of(pod) for pod in self._job.pods()} - taken
        if not free:
            raise DemoError(f"no node to power off: {self._job.brief()}")
        ours = {faults.node_of(p) for p in setting.operators(self._site.cluster, self._site.release)}
        return min(free, key=lambda node: (node in ours, node))

    def back(self, kind: str, at: float, limit: float) -> Back:
        """See Side."""
        log = self._job.log
        found = wait_for(
            lambda: resumed(log.lines, log.samples, at), limit, f"steps after `{kind}`", every=0.1, seen=self._job.brief
        )
        assert found is not None
        return Back(found.at, found.lost, f"{found.lost} steps lost")

    def end(self) -> None:
        """See Side."""
        _mend(self._site)
        self._job.end()


def _mend(site: Site) -> None:
    for node in sorted(site.dark):
        site.power_on(node)
