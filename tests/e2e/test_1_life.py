"""A job's life without and with faults, and its end: what a user sees of it through kubectl alone."""

from __future__ import annotations

import time

import pytest
from holdfast_demo import faults, measure, setting
from holdfast_demo.waiting import wait_for

from .plain import STEPS
from .site import Say, Shared, Site, recovery, restarts, weights

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_runs_to_the_end_and_says_so(plain: dict[int, set[str]], say: Say) -> None:
    assert sorted(plain) == list(range(STEPS))
    assert all(len(values) == 1 for values in plain.values())
    assert len({v for values in plain.values() for v in values}) == STEPS, "the weights must change at every step"
    say(f"{STEPS} steps, Succeeded, last step saved on PVC and S3")


def test_faults_do_not_change_the_weights(plain: dict[int, set[str]], site: Site, say: Say) -> None:
    """I6: a run with a killed process, a segfault and a deleted pod ends with the very weights of one without."""
    scene = site.start(site.spec("faulted", "--steps", str(STEPS), "--pace", "0.05"))
    scene.job.wait_phase("Running", limit=180)
    for kind, act in (("killed", faults.kill_rank), ("segfault", faults.segfault), ("pod deleted", faults.delete_pod)):
        scene.job.wait_steps(15, 60, time.time())
        before = measure.look(scene.job)
        recovery(scene, say, kind, before, act(scene, 1), 90)
    status = scene.job.wait_phase("Succeeded", "Failed", limit=180)
    assert status["phase"] == "Succeeded", scene.job.brief()
    wait_for(lambda: scene.job.log.weights, 20, "the hash of the final weights")
    found = weights(scene)
    assert sorted(found) == list(range(STEPS))
    different = [step for step in sorted(found) if found[step] != plain[step]]
    assert not different, f"first different step: {different[0]}"
    counted = restarts(scene)
    assert (counted["process"], counted["pod"], counted["job"]) == (2, 1, 0)
    assert status["recoveries"] == 3
    say(f"{STEPS} steps with 3 faults: same weights at every step; goodput {status['goodput']:.1%}")
    site.end(scene)


def test_a_script_that_is_not_there_fails_with_its_own_words_and_keeps_its_logs(site: Site, say: Say) -> None:
    spec = site.spec("no-script", command=("python3", "/script/nowhere.py"), replicas=1, stores=(), torch_site="")
    scene = site.start(spec)
    start = time.time()
    status = scene.job.wait_phase("Failed", "Succeeded", limit=120)
    assert status["phase"] == "Failed", scene.job.brief()
    assert "nowhere.py" in status["message"], status["message"]
    assert "No such file" in status["message"], status["message"]
    failed = scene.job.condition("Failed")
    assert failed is not None
    assert failed["status"] == "True"
    assert failed["reason"] == "NoProgress"
    site.await_event(scene, "JobFailed")
    say(f"script missing: Failed after {time.time() - start:.1f} s: {status['message'][:120]}")

    def stopped() -> bool:
        return all(p["status"]["phase"] in ("Failed", "Succeeded") for p in scene.job.pods())

    wait_for(stopped, 60, "the failed job's pods to stop", seen=lambda: [p["status"] for p in scene.job.pods()])
    pods = scene.job.pods()
    assert len(pods) == 1, "a failed job keeps its pods"
    assert "nowhere.py" in site.cluster.kube.logs(site.namespace, pods[0]["metadata"]["name"], "trainer")
    site.end(scene)


def test_a_script_that_ends_at_once_succeeds_and_is_told_what_is_odd(site: Site) -> None:
    spec = site.spec("at-once", command=("python3", "-c", "print('done')"), replicas=2, stores=(), torch_site="")
    scene = site.start(spec)
    status = scene.job.wait_phase("Failed", "Succeeded", limit=120)
    assert status["phase"] == "Succeeded", scene.job.brief()
    assert "without reporting a step" in status["message"]
    site.end(scene)


def test_a_script_that_ignores_sigterm_is_no_obstacle(site: Site, say: Say) -> None:
    scene = site.start(site.spec("deaf", "--deaf", replicas=2, grace=4))
    scene.job.wait_phase("Running", limit=180)
    scene.job.wait(lambda s: {"memory", "pvc"} <= set(s.get("checkpoints", {})), 60, "a checkpoint on the PVC")
    scene.job.wait_steps(10, 60, time.time())
    before = measure.look(scene.job)
    old = scene.job.need_pod(1)["metadata"]["name"]
    at = faults.delete_pod(scene, 1)
    outcome = recovery(scene, say, "pod of a deaf script deleted", before, at, 90)
    assert outcome.level in ("pvc", "s3")
    wait_for(lambda: site.cluster.kube.find("Pod", site.namespace, old) is None, 60, f"pod {old} to be gone")
    before = measure.look(scene.job)
    outcome = recovery(scene, say, "one of two deaf ranks killed", before, faults.kill_rank(scene, 0), 60)
    assert outcome.level == "memory"
    site.end(scene)


def test_deleting_a_job_removes_everything_even_without_an_operator(site: Site, shared: Shared) -> None:
    scene = site.start(site.spec("gone", replicas=1, stores=()))
    scene.job.wait_phase("Running", limit=120)
    kube = site.cluster.kube
    selector = "holdfast.dev/job=gone"
    owned = {kind: len(kube.list(kind, site.namespace, selector)) for kind in ("Pod", "Service", "Secret")}
    assert owned == {"Pod": 1, "Service": 1, "Secret": 1}
    faults.scale_operator(scene, 0)
    try:
        scene.job.delete()

        def left() -> list[str]:
            return [o["metadata"]["name"] for kind in owned for o in kube.list(kind, site.namespace, selector)]

        wait_for(lambda: not left(), 60, "everything of the job to be gone", seen=left)
        assert scene.job.resource is None
    finally:
        faults.scale_operator(scene, 1)
    site.end(scene)
    assert setting.operators(site.cluster, site.release)
