"""What users get wrong: refused at once with the field's name, or shown as condition and event, and healed once mended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from holdfast_demo import setting
from holdfast_demo.faults import Scene
from holdfast_demo.jobs import claim_store, s3_store
from holdfast_demo.kube import ApiError, Object
from holdfast_demo.waiting import wait_for

from .site import Say, Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SHOWN = 30.0  # seconds until a condition names what is missing
TEMPLATE = "spec.workers.template"
STORES = "spec.checkpoint.stores"


def _good(site: Site) -> Object:
    return site.spec("checked").manifest()


def _put(manifest: Object, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        manifest = manifest[int(key)] if key.isdecimal() else manifest[key]
    manifest[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("spec.workers.replicas", 0, "spec.workers.replicas"),
        ("spec.workers.replicas", "three", "spec.workers.replicas"),
        (f"{TEMPLATE}.spec.containers.0.name", "main", TEMPLATE),
        (f"{TEMPLATE}.spec.containers.0.command", [], TEMPLATE),
        ("spec.checkpoint.memory", {"slots": 1}, "spec.checkpoint.memory.slots"),
        ("spec.checkpoint.memory", {"size": "much"}, "spec.checkpoint.memory.size"),
        (f"{STORES}.0.name", "memory", STORES),
        (f"{STORES}.0.name", "s3", STORES),
        (f"{STORES}.0.url", "s3://also/a/bucket", STORES),
        (f"{STORES}.1.url", "https://not/s3", STORES),
        (f"{STORES}.1.every", {"steps": 5, "seconds": 5}, STORES),
        ("spec.failurePolicy.restarts.window", "soon", "spec.failurePolicy.restarts.window"),
    ],
)
def test_an_invalid_job_is_refused_with_the_name_of_the_field(site: Site, path: str, value: Any, field: str) -> None:
    manifest = deepcopy(_good(site))
    _put(manifest, path, value)
    with pytest.raises(ApiError) as refused:
        site.cluster.kube.create(manifest, dry_run=True)
    assert refused.value.status == 422
    assert field in refused.value.message, refused.value.message


def test_the_same_job_without_the_mistake_is_accepted(site: Site) -> None:
    site.cluster.kube.create(_good(site), dry_run=True)


@dataclass(frozen=True)
class Missing:
    """Something a job needs that is not there: how it shows, and how it is mended."""

    scene: Scene
    started: float
    condition: str
    text: str
    mend: Callable[[], None]


@pytest.fixture(scope="module")
def missing(site: Site) -> dict[str, Missing]:
    """Four jobs side by side, each with one thing missing."""
    run, access, namespace = secrets.token_hex(3), site.cluster.s3_access(), site.namespace
    image, bucket = f"localhost/holdfast-late-{run}:1", f"late-{run}"
    every = {"seconds": 2}
    secret = setting.s3_secret(namespace, access, "late-secret")
    script = ("--steps", "100000")
    s3 = s3_store(f"{site.workspace.url}/x", "late-secret", every)
    jobs = {
        "claim": site.spec("no-claim", *script, replicas=1, stores=(claim_store("late-claim", every),)),
        "secret": site.spec("no-secret", *script, replicas=1, stores=(s3,)),
        "bucket": site.spec("no-bucket", *script, replicas=1, stores=(s3_store(f"s3://{bucket}/x", setting.SECRET, every),)),
        "image": site.spec("no-image", *script, replicas=1, stores=(), image=image),
    }
    scenes = {name: site.start(spec) for name, spec in jobs.items()}
    now = time.time()
    return {
        "claim": Missing(scenes["claim"], now, "PodsReady", "late-claim", lambda: site.cluster.claim(namespace, "late-claim")),
        "secret": Missing(scenes["secret"], now, "PodsReady", "late-secret", lambda: _apply(site, secret)),
        "bucket": Missing(scenes["bucket"], now, "StoresHealthy", bucket, lambda: _make_bucket(access, bucket)),
        "image": Missing(scenes["image"], now, "PodsReady", image, lambda: _tag_image(site, image)),
    }


def _apply(site: Site, manifest: Object) -> None:
    site.cluster.kube.apply(manifest)


def _make_bucket(access: dict[str, str], bucket: str) -> None:
    from botocore.session import Session

    client = Session().create_client(
        "s3",
        region_name=access["region"],
        endpoint_url=access["endpoint"],
        aws_access_key_id=access["access_key"],
        aws_secret_access_key=access["secret_key"],
    )
    client.create_bucket(Bucket=bucket)
    client.close()


def _tag_image(site: Site, image: str) -> None:
    for node in site.cluster.nodes_ready():
        site.cluster.call("exec-node", node, "ctr", "-n", "k8s.io", "images", "tag", setting.PYTHON_IMAGE, image)


@pytest.mark.parametrize("what", ["claim", "secret", "bucket", "image"])
def test_what_is_missing_is_named_and_heals(site: Site, missing: dict[str, Missing], say: Say, what: str) -> None:
    case = missing[what]
    found = case.scene.job.wait_condition(case.condition, False, SHOWN, case.text)
    say(f"missing {what}: condition {case.condition}=False {found['reason']}: {found['message'][:140]}")
    wait_for(lambda: case.text in " ".join(site.events(case.scene).values()), SHOWN, f"an event that names {case.text}")
    assert case.scene.job.status["phase"] != "Failed"
    mended = time.time()
    case.mend()
    case.scene.job.wait_phase("Running", limit=240)
    say(f"missing {what}: training {time.time() - mended:.1f} s after it was mended")
    case.scene.job.wait_condition(case.condition, True, 60)
    site.end(case.scene)
