"""Nodes that die while their pods protect each other: peers' RAM serves, nothing protected is lost, and no disk is asked.

One job of two pods on three nodes, so that a lost one finds a node of its own; each test leaves it training and protected. What
a test breaks it mends.
"""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from holdfast_demo import diagnose, faults, measure, processes, setting
from holdfast_demo.faults import Scene
from holdfast_demo.jobs import Job
from holdfast_demo.measure import Before, Outcome
from holdfast_demo.waiting import wait_for
from holdfast_sidecar.peers.channel import Closed, Refused
from holdfast_sidecar.peers.place import Fault

from . import clients, memory
from .copies import recorded, written_since
from .plain import STEPS
from .site import BUILD, Say, Site, note_dark, recovery, restarts, weights

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

LIMIT = 120.0  # seconds to the next finished step; wide on purpose: `make bench` has the tight targets


@contextmanager
def _job(site: Site, name: str, *arguments: str, **changes: object) -> Iterator[Scene]:
    """A job in groups of three, with stores that are rarely fresher than peers' RAM: where they are, they serve.

    In the end, what its sidecars logged is replayed against the rules that the model runs on.
    """
    usual = {"peers": {"groupSize": 3, "parity": 1}, "stores": site.workspace.stores({"seconds": 20}, {"seconds": 30})}
    trace = site.trace(name)
    scene = site.start(site.spec(name, *arguments, **{**usual, **changes}))
    try:
        yield scene
        trace.close()
        wrong = trace.contradictions()
        assert not wrong, "\n".join(wrong)
    except BaseException:
        diagnose.dump(scene, BUILD / scene.job.name)  # before the job goes; for what outlives the test it is done in conftest
        raise
    finally:
        trace.close()
        site.end(scene)


@contextmanager
def _dark(scene: Scene, *nodes: str) -> Iterator[float]:
    """Nodes without power, all at once; the moment before. They are on again afterwards."""
    at = time.time()
    there = [p["metadata"]["name"] for p in scene.job.pods() if faults.node_of(p) in nodes]
    for node in nodes:
        scene.cluster.power_off(node)
    note_dark(scene, there)
    try:
        yield at
    finally:
        for node in nodes:
            scene.cluster.power_on(node)
        for node in nodes:
            wait_for(lambda n=node: scene.cluster.nodes_ready().get(n), 90, f"{node} to be Ready again")


def _protected(job: Job, steps: int = 10, limit: float = 90) -> None:
    """Training, with a few new steps, and any one node may be lost."""
    job.wait_phase("Running", limit=240)
    job.wait_steps(steps, 120, time.time())
    job.wait_condition("Protected", True, limit)
    since = job.checkpoint("memory")
    job.wait(lambda s: s["checkpoints"].get("peers", {}).get("step", -1) >= since, 60, "the newest step in peers' RAM")


def _judged(scene: Scene, outcome: Outcome, before: Before) -> None:
    """Served by peers, or by a store with a fresher step; nothing that was protected is lost."""
    fresher = outcome.resumed_step > before.saved["peers"] and outcome.level in ("pvc", "s3")
    assert outcome.level == "peers" or fresher, f"resumed from {outcome.level}; {scene.job.brief()}"
    assert not (problem := measure.judge(outcome, before, (outcome.level,), ("peers",))), problem
    assert outcome.seconds < LIMIT


def _nodes(scene: Scene) -> list[str]:
    """Nodes with a pod of the job, but without the operator. Pods that are being deleted are elsewhere by now."""
    operator = {faults.node_of(p) for p in setting.operators(scene.cluster, scene.release)}
    return sorted({faults.node_of(p) for p in faults.live_pods(scene)} - operator - {""})


# --- jobs of their own


def test_the_weights_are_those_of_a_run_without_faults(plain: dict[int, set[str]], site: Site, say: Say) -> None:
    """I6, from peers' RAM alone: no store is configured at all."""
    with _job(site, "peers-faulted", "--steps", str(STEPS), "--pace", "0.08", stores=()) as scene:
        _protected(scene.job)
        before, node = measure.look(scene.job), _nodes(scene)[0]
        with _dark(scene, node) as at:
            outcome = recovery(scene, say, f"{node} powered off, no store", before, at, 180)
            _judged(scene, outcome, before)
            scene.job.wait_phase("Succeeded", "Failed", limit=300)
        wait_for(lambda: scene.job.log.weights, 20, "the hash of the final weights")
        found = weights(scene)
    different = [step for step in sorted(found) if found[step] != plain[step]]
    assert not different, f"first different step: {different[0]}"
    assert max(found) == STEPS - 1


def test_a_spare_takes_the_lost_rank_at_once(site: Site, say: Say) -> None:
    with _job(site, "spared", spares=1, stores=()) as scene:
        _protected(scene.job)
        scene.job.wait(lambda s: s.get("spares") == "1/1", 120, "a warm spare")
        spare = {faults.node_of(p) for p in scene.job.pods() if p["metadata"]["labels"].get("holdfast.dev/spare")}
        workers = {faults.node_of(scene.job.need_pod(i)): i for i in range(3)}
        node = max((n for n in _nodes(scene) if n not in spare), key=workers.__getitem__)  # a spare of rank 0 was no proof
        before = measure.look(scene.job)
        with _dark(scene, node) as at:
            outcome = recovery(scene, say, f"{node} powered off, with a spare", before, at, 180)
            _judged(scene, outcome, before)
            site.await_event(scene, "SpareTaken")
        scene.job.wait(lambda s: s.get("spares") == "1/1", 180, "another spare in its place")


def test_two_nodes_of_different_groups_at_once(site: Site, say: Say) -> None:
    """Four pods on three nodes, in pairs of different nodes: the node that has two of them has one of each pair, and stays."""
    with _job(site, "pairs", replicas=4, peers={"groupSize": 2, "parity": 1}) as scene:
        _protected(scene.job)
        where = [faults.node_of(p) for p in scene.job.pods()]
        faults.move_operator(scene, max(where, key=where.count))
        _protected(scene.job)
        before, nodes, counted = measure.look(scene.job), _nodes(scene), restarts(scene)
        assert len(nodes) == 2
        with _dark(scene, *nodes) as at:
            outcome = recovery(scene, say, f"{' and '.join(nodes)} powered off at once", before, at, 240)
            _judged(scene, outcome, before)
            replaced = restarts(scene)["pod"] - counted["pod"]
            assert replaced <= 3, "only the first one may be sent to the node that nobody knows to be dead yet"


def test_more_losses_than_parity_fall_to_the_freshest_whole_step_of_the_stores(site: Site, say: Say) -> None:
    with _job(site, "three") as scene:
        _protected(scene.job)
        scene.job.wait(lambda s: {"pvc", "s3"} <= set(s["checkpoints"]), 60, "something in both stores")
        before, nodes = measure.look(scene.job), _nodes(scene)
        with _dark(scene, *nodes) as at:
            outcome = recovery(scene, say, f"{' and '.join(nodes)} powered off, one group", before, at, 240)
            assert outcome.level in ("pvc", "s3")
            assert outcome.resumed_step >= max(before.saved["pvc"], before.saved["s3"])


SLOW = {"peers": {"groupSize": 3, "parity": 1, "bandwidth": "1Mi"}, "memory": {"slots": 4}}
LARGE = ("--width", "20000", "--pace", "0.1")  # 4 MB of state: with this limit a round, and a rebuild, take seconds


def test_power_off_in_the_middle_of_a_replication_falls_back_to_the_protected_step(site: Site, say: Say) -> None:
    with _job(site, "mid-replication", *LARGE, replicas=2, **SLOW) as scene:
        scene.job.wait_phase("Running", limit=240)
        scene.job.wait_condition("Protected", True, 120)
        scene.job.wait(lambda s: s["checkpoints"]["memory"]["step"] > s["checkpoints"]["peers"]["step"] + 3, 60, "a round")
        before, node = measure.look(scene.job), _nodes(scene)[0]
        with _dark(scene, node) as at:
            outcome = recovery(scene, say, f"{node} powered off in mid-replication", before, at, 180)
            _judged(scene, outcome, before)


def test_power_off_in_the_middle_of_a_rebuild_is_one_more_loss(site: Site, say: Say) -> None:
    """Lost is the pod that is being rebuilt, which held nothing yet: peers still serve; or a survivor: then a store does."""
    with _job(site, "mid-rebuild", *LARGE, replicas=2, **SLOW) as scene:
        scene.job.wait_phase("Running", limit=240)
        scene.job.wait_condition("Protected", True, 120)
        scene.job.wait(lambda s: {"pvc", "s3"} <= set(s["checkpoints"]), 60, "something in both stores")
        before, first = measure.look(scene.job), _nodes(scene)[0]
        with _dark(scene, first):
            scene.job.wait(lambda s: s.get("stage") == "preparing", 90, "the rebuild to begin", every=0.05)
            second = next(n for n in _nodes(scene) if n != first)
            with _dark(scene, second) as at:
                what = f"{second} powered off while the rank of {first} was rebuilt"
                outcome = recovery(scene, say, what, before, at, 240)
                assert outcome.level in ("peers", "pvc", "s3")
                assert outcome.resumed_step >= max(before.saved["pvc"], before.saved["s3"])


def test_a_node_that_flaps_is_avoided_and_the_reason_is_told(site: Site, say: Say) -> None:
    with _job(site, "flapping", replicas=2) as scene:
        job, node = scene.job, ""
        for turn in range(2):
            _protected(job)
            node = node or _nodes(scene)[0]
            if turn:
                _bring_back(scene, node, say)
            before = measure.look(job)
            with _dark(scene, node) as at:
                outcome = recovery(scene, say, f"{node} powered off, time {turn + 1}", before, at, 180)
                _judged(scene, outcome, before)
        found = job.wait(lambda s: s.get("avoidedNodes"), 30, f"{node} to be avoided")["avoidedNodes"]
        assert [a["node"] for a in found] == [node]
        assert found[0]["count"] >= 2
        site.await_event(scene, "NodeAvoided")
        recovery(scene, say, "pod 1 deleted", measure.look(job), faults.delete_pod(scene, 1), 180)
        assert faults.node_of(job.need_pod(1)) != node


def _bring_back(scene: Scene, node: str, say: Say) -> None:
    """A pod on the node that failed once: for a while it is the only one that takes any."""
    with faults.only(scene, node):
        recovery(scene, say, "pod 1 deleted", measure.look(scene.job), faults.delete_pod(scene, 1), 180)
    assert faults.node_of(scene.job.need_pod(1)) == node
    _protected(scene.job)


# --- one job that is hit again and again


@pytest.fixture(scope="module")
def group(site: Site) -> Iterator[Scene]:
    """Two pods on three nodes: whichever is lost finds a node of its own."""
    with _job(site, "group", replicas=2, nodes={"limit": 0}) as scene:
        yield scene


@pytest.fixture
def protected(group: Scene) -> Scene:
    """The job, training and protected."""
    _protected(group.job)
    return group


def test_a_node_without_power_costs_no_protected_step_and_no_disk(protected: Scene, site: Site, say: Say) -> None:
    job, node = protected.job, _nodes(protected)[0]
    before, counted = measure.look(job), restarts(protected)
    with _dark(protected, node) as at:
        outcome = recovery(protected, say, f"{node} powered off", before, at, 180)
        _judged(protected, outcome, before)
        assert restarts(protected)["pod"] == counted["pod"] + 1, "only the lost pod is replaced"
        last = job.status["lastRecovery"]
        assert last["reason"] in ("PodUnreachable", "NodeLost")
        assert any("knocks" in line for line in last["evidence"]), last
        assert any("peers get no answer" in line for line in last["evidence"]), last
        site.await_event(protected, "Resuming", "rebuilt from peers' RAM")
    job.wait_condition("Protected", True, 60)
    assert job.status["protection"]["faults"] == 1
    assert "PeersHoldParity" in site.cluster.kubectl("describe", "tj", job.name, "-n", site.namespace)


def test_a_node_while_another_recovery_is_under_way(protected: Scene, say: Say) -> None:
    """The node has no power yet nobody knows, when a process dies elsewhere: that recovery waits for a pod that is no more."""
    before, node, counted = measure.look(protected.job), _nodes(protected)[0], restarts(protected)
    survivor = next(i for i in range(2) if faults.node_of(protected.job.need_pod(i)) != node)
    with _dark(protected, node) as at:
        faults.kill_rank(protected, survivor)
        outcome = recovery(protected, say, f"{node} powered off, then rank {survivor} killed", before, at, 180)
        _judged(protected, outcome, before)
        assert restarts(protected)["pod"] == counted["pod"] + 1


def test_a_partition_that_heals_has_no_say_any_more(protected: Scene, site: Site, say: Say, tmp_path: Path) -> None:
    """What the cut-off rank can do alone is not much, so what would stop it from doing more is looked at too."""
    job, node = protected.job, _nodes(protected)[0]
    before, at = measure.look(job), time.time()
    site.cluster.call("partition", node)
    try:
        outcome = recovery(protected, say, f"{node} partitioned", before, at, 180)
        _judged(protected, outcome, before)
        resumed, attempt = time.time(), job.attempt
        job.wait_steps(40, 60, resumed)
    finally:
        site.cluster.call("heal", node)
    wait_for(lambda: site.cluster.nodes_ready().get(node), 90, f"{node} to be Ready again")
    wait_for(lambda: not faults.stale_pods(protected), 120, "replaced pods to be gone")
    job.wait_steps(40, 60, time.time())
    assert job.attempt == attempt, "a node that comes back must not disturb"
    for pod in faults.live_pods(protected):
        old = clients.question(protected, before.attempt)
        answer = clients.ask_peer(pod["status"]["podIP"], clients.member(protected, tmp_path), old)
        assert answer.fault == Fault.FENCED, answer
    folders = (site.pvc_folder(protected), site.s3_folder(protected))
    what = f"attempt {attempt} to bar older ones from the shared disk"  # which the cut-off side could reach all the time
    wait_for(lambda: max(recorded(folders[0]), default=0) == attempt, 60, what)
    assert not [c for folder in folders for c in written_since(folder, resumed) if c.attempt < attempt]


@pytest.mark.parametrize("harm", ["own snapshot", "parity"])
def test_a_survivor_with_damaged_memory_is_found_out_and_a_store_serves(
    protected: Scene, site: Site, say: Say, harm: str
) -> None:
    """One node is lost, and a bit of what is needed to rebuild its rank has flipped: two losses, more than the parity."""
    job, node = protected.job, _nodes(protected)[0]
    survivor = next(i for i in range(2) if faults.node_of(job.need_pod(i)) != node)
    alive = faults.node_of(job.need_pod(survivor))
    pid = processes.find_trainer(processes.container_id(job.need_pod(survivor), "trainer"), survivor)
    before = measure.look(job)
    faults.scale_operator(protected, 0)
    try:
        faults.signal_rank(protected, survivor, signal.SIGSTOP)
        _settle(pid, survivor)
        site.note_damage(protected, memory.sealed(pid, survivor))
        (_spoil_snapshots if harm == "own snapshot" else _spoil_parity)(pid, survivor)
        at = faults.power_off(protected, node)
    finally:
        with faults.only(protected, alive):  # Kubernetes takes the dead node for alive yet, and might send the operator there
            faults.scale_operator(protected, 1)
    try:
        outcome = recovery(protected, say, f"{harm} of rank {survivor} damaged, {node} powered off", before, at, 240)
        assert outcome.level in ("pvc", "s3"), job.brief()
        assert outcome.resumed_step >= max(before.saved["pvc"], before.saved["s3"])
    finally:
        faults.power_on(protected, node)


def _settle(pid: int, rank: int) -> None:
    """All ranks wait for each other: no newer step can come, and the round that is under way ends."""

    def seen() -> list[tuple[str, int]]:
        found = []
        for path in Path(f"/proc/{pid}/root/holdfast/shared/parity").glob(f"rank-{rank:05d}.*"):
            with suppress(OSError):  # it was replaced in this moment
                found.append((path.name, path.stat().st_mtime_ns))
        return sorted(found)

    kept: list[tuple[float, object]] = [(time.monotonic(), seen())]

    def quiet() -> bool:
        if seen() != kept[-1][1]:
            kept.append((time.monotonic(), seen()))
        return time.monotonic() - kept[-1][0] > 1.5

    wait_for(quiet, 30, "the last round to end")


def _spoil_snapshots(pid: int, rank: int) -> None:
    for step in memory.sealed(pid, rank):
        memory.flip(pid, rank, step)


def _spoil_parity(pid: int, rank: int) -> None:
    for path in Path(f"/proc/{pid}/root/holdfast/shared/parity").glob(f"rank-{rank:05d}.*"):
        with path.open("r+b") as stream:
            stream.seek(-(path.stat().st_size // 4), 2)
            byte = stream.read(1)[0]
            stream.seek(-1, 1)
            stream.write(bytes([byte ^ 0x10]))


def test_a_client_without_the_jobs_certificate_gets_nothing_from_the_peer_port(protected: Scene, tmp_path: Path) -> None:
    address = protected.job.need_pod(1)["status"]["podIP"]
    request = clients.question(protected, protected.job.attempt)
    answer = clients.ask_peer(address, clients.member(protected, tmp_path), request)
    assert answer.fault in ("", Fault.LACKS), f"what follows would be refused for another reason: {answer}"
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        clients.ask_peer(address, clients.anybody(), request)
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        clients.ask_peer(address, clients.stranger(tmp_path), request)
    with pytest.raises((Closed, Refused)):
        clients.ask_peer(address, None, request)
