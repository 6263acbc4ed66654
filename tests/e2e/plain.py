"""The run without faults that every other one is compared with."""

from __future__ import annotations

import re

from holdfast_demo.kube import Object
from holdfast_demo.waiting import wait_for

from .site import Site, weights

STEPS = 220  # the faults of any job that is compared must fall into these


def run_plain(site: Site) -> dict[int, set[str]]:
    """Hashes of the weights at each step."""
    scene = site.start(site.spec("plain", "--steps", str(STEPS), "--pace", "0.01"))
    scene.job.wait_phase("Running", "Succeeded", limit=180)
    status = scene.job.wait_phase("Succeeded", "Failed", limit=180)
    assert status["phase"] == "Succeeded", scene.job.brief()
    wait_for(lambda: scene.job.log.weights, 20, "the hash of the final weights")
    found = weights(scene)
    _tells_its_story(site, status)
    site.end(scene)
    return found


def _tells_its_story(site: Site, status: Object) -> None:
    """`kubectl get`, `describe` and events alone say what happened."""
    table = site.cluster.kubectl("get", "tj", "plain", "-n", site.namespace)
    head, row = (re.split(r" {2,}", line.strip()) for line in table.strip().splitlines())
    assert [h.lower() for h in head] == ["name", "state", "ready", "step", "saved", "restarts", "goodput", "age"]
    seen = dict(zip([h.lower() for h in head], row, strict=True))
    assert seen["state"] == "Succeeded"
    assert seen["step"] == str(STEPS - 1)
    assert seen["saved"].endswith(f"@{STEPS - 1}")
    assert seen["restarts"] == "0"
    text = site.cluster.kubectl("describe", "tj", "plain", "-n", site.namespace)
    assert "Completed" in text
    assert f"finished at step {STEPS - 1} after 0 recoveries" in text
    for level in ("pvc", "s3"):
        assert status["checkpoints"][level]["step"] == STEPS - 1, "the last step was not saved before the end"
