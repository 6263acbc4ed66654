"""The API: every field says what it is, and the API server refuses what is wrong by the field's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from control_plane import ADMIN, CRD, ControlPlane
from holdfast_operator import api
from holdfast_operator.api import Api, ApiError

Job = dict[str, Any]


def undescribed(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if not field.get("description") and f"{path}.{name}" not in (".metadata", ".metadata.name"):
            yield f"{path}.{name}"
        yield from undescribed(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from undescribed({"properties": {f"[{key}]": schema[key]}}, path)


def test_every_field_is_described():
    crd = yaml.safe_load(CRD.read_text())
    assert list(undescribed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])) == []


def empty(value: Any, path: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if inner is None:
            yield f"{path}.{key}"
        yield from empty(inner, f"{path}.{key}")


def test_no_key_is_left_without_a_value():
    """A comma in an unquoted text of a flow mapping makes a key of the rest; the API server drops it silently."""
    assert list(empty(yaml.safe_load(CRD.read_text()))) == []


def minimal() -> Job:
    return {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "job"},
        "spec": {
            "workers": {
                "template": {"spec": {"containers": [{"name": "trainer", "image": "i", "command": ["python", "t.py"]}]}}
            }
        },
    }


def with_store(**store: Any) -> Job:
    body = minimal()
    body["spec"]["checkpoint"] = {"stores": [{"name": "pvc", "persistentVolumeClaim": {"claimName": "c"}} | store]}
    return body


def with_every(every: Any) -> Job:
    body = minimal()
    body["spec"]["checkpoint"] = {"every": every}
    return body


def with_peers(**peers: Any) -> Job:
    body = minimal()
    body["spec"]["checkpoint"] = {"peers": peers}
    return body


def pod_spec(body: Job) -> dict[str, Any]:
    made: dict[str, Any] = body["spec"]["workers"]["template"]["spec"]
    return made


def change(where: Callable[[Job], Any], key: Any, value: Any) -> Job:
    body = minimal()
    where(body)[key] = value
    return body


def workers(body: Job) -> Any:
    return body["spec"]["workers"]


def container(body: Job) -> Any:
    return pod_spec(body)["containers"][0]


INVALID = [
    (change(container, "name", "main"), "spec.workers.template.spec.containers", "must be named 'trainer'"),
    (change(container, "command", []), "spec.workers.template.spec.containers[0].command", "must give its command"),
    (
        change(pod_spec, "containers", [*pod_spec(minimal())["containers"], {"name": "holdfast-x"}]),
        "spec.workers.template.spec.containers[1].name",
        "reserved",
    ),
    (
        change(pod_spec, "initContainers", [{"name": "holdfast-x"}]),
        "spec.workers.template.spec.initContainers[0].name",
        "reserved",
    ),
    (change(pod_spec, "volumes", [{"name": "holdfast-tls"}]), "spec.workers.template.spec.volumes[0].name", "reserved"),
    (change(pod_spec, "restartPolicy", "Never"), "spec.workers.template.spec.restartPolicy", "OnFailure"),
    (change(workers, "replicas", 0), "spec.workers.replicas", "greater than or equal to 1"),
    (change(workers, "processesPerPod", "many"), "spec.workers.processesPerPod", "auto or a number"),
    (change(workers, "processesPerPod", 0), "spec.workers.processesPerPod", "auto or a number"),
    (change(lambda b: b["metadata"], "name", "x" * 41), "metadata.name", "at most 40"),
    (change(lambda b: b["metadata"], "name", "a.b"), "metadata.name", "at most 40"),
    (change(lambda b: b["spec"], "checkpoint", {"memory": {"size": "big"}}), "spec.checkpoint.memory.size", "quantity"),
    (change(lambda b: b["spec"], "checkpoint", {"memory": {"size": 0}}), "spec.checkpoint.memory.size", "quantity"),
    (change(lambda b: b["spec"], "checkpoint", {"memory": {"slots": 1}}), "spec.checkpoint.memory.slots", "greater than"),
    (change(lambda b: b["spec"], "checkpoint", {"memory": {"slots": 9}}), "spec.checkpoint.memory.slots", "less than"),
    (with_every({}), "spec.checkpoint.every.steps", "exactly one of steps, seconds and auto"),
    (with_every({"steps": 1, "seconds": 1}), "spec.checkpoint.every.steps", "exactly one"),
    (with_every({"steps": 1, "auto": {}}), "spec.checkpoint.every.steps", "exactly one"),
    (with_every({"steps": 0}), "spec.checkpoint.every.steps", "greater than"),
    (with_every({"seconds": 0}), "spec.checkpoint.every.seconds", "greater than"),
    (with_every({"auto": {"minSteps": 0}}), "spec.checkpoint.every.auto.minSteps", "greater than"),
    (with_every({"auto": {"minSteps": 8, "maxSteps": 4}}), "spec.checkpoint.every.auto.maxSteps", "not be below minSteps"),
    (with_every({"auto": {"maxSeconds": 0}}), "spec.checkpoint.every.auto.maxSeconds", "greater than"),
    (with_every({"auto": "yes"}), "spec.checkpoint.every.auto", "must be of type object"),
    (with_peers(groupSize=1), "spec.checkpoint.peers.groupSize", "greater than"),
    (with_peers(groupSize=33), "spec.checkpoint.peers.groupSize", "less than"),
    (with_peers(groupSize=2, parity=2), "spec.checkpoint.peers.parity", "below groupSize"),
    (with_peers(parity=4), "spec.checkpoint.peers.parity", "below groupSize"),
    (with_peers(parity=9, groupSize=16), "spec.checkpoint.peers.parity", "less than"),
    (with_peers(bandwidth="fast"), "spec.checkpoint.peers.bandwidth", "quantity"),
    (with_peers(bandwidth=0), "spec.checkpoint.peers.bandwidth", "quantity"),
    (with_peers(encryption="rot13"), "spec.checkpoint.peers.encryption", "Unsupported value"),
    (change(workers, "spares", -1), "spec.workers.spares", "greater than"),
    (change(workers, "spares", 65), "spec.workers.spares", "less than"),
    (with_store(name="memory"), "spec.checkpoint.stores[0].name", "Holdfast's own"),
    (with_store(name="Upper_case"), "spec.checkpoint.stores[0].name", "a-z"),
    (with_store(url="s3://b/p"), "spec.checkpoint.stores[0].persistentVolumeClaim", "exactly one"),
    (with_store(persistentVolumeClaim=None), "spec.checkpoint.stores[0].persistentVolumeClaim", "exactly one"),
    (with_store(persistentVolumeClaim=None, url="gs://b"), "spec.checkpoint.stores[0].url", "s3://bucket"),
    (with_store(secretRef={"name": "s"}), "spec.checkpoint.stores[0].secretRef", "url"),
    (with_store(every={"seconds": 1, "steps": 1}), "spec.checkpoint.stores[0].every.seconds", "exactly one"),
    (with_store(every={}), "spec.checkpoint.stores[0].every.seconds", "exactly one"),
    (with_store(every={"steps": 0}), "spec.checkpoint.stores[0].every.steps", "greater than"),
    (with_store(keep=0), "spec.checkpoint.stores[0].keep", "greater than"),
    (
        with_store(persistentVolumeClaim={"claimName": "c", "subPath": "../x"}),
        "spec.checkpoint.stores[0].persistentVolumeClaim.subPath",
        "relative",
    ),
    (
        change(lambda b: b["spec"], "checkpoint", {"stores": [{"name": "s", "url": "s3://bkt"}] * 2}),
        "spec.checkpoint.stores[1]",
        "Duplicate",
    ),
    (
        change(lambda b: b["spec"], "failurePolicy", {"restarts": {"window": "soon"}}),
        "spec.failurePolicy.restarts.window",
        "duration",
    ),
    (
        change(lambda b: b["spec"], "failurePolicy", {"restarts": {"window": "0s"}}),
        "spec.failurePolicy.restarts.window",
        "duration",
    ),
    (
        change(lambda b: b["spec"], "failurePolicy", {"nodes": {"window": "0s"}}),
        "spec.failurePolicy.nodes.window",
        "duration",
    ),
    (change(lambda b: b["spec"], "runPolicy", {"hangDeadlineSeconds": 0}), "spec.runPolicy.hangDeadlineSeconds", "greater"),
]


class Server:
    """Calls as the operator makes them."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._configuration = api.load_configuration(str(plane.kubeconfig(ADMIN)))
        self._jobs = api.job(namespace, "").rstrip("/")

    def create(self, body: Job, dry_run: bool = False) -> Job:
        query = {"dryRun": "All"} if dry_run else None

        async def go() -> Job:
            client = Api(self._configuration)
            try:
                return await client._request("POST", self._jobs, _without_none(body), query)
            finally:
                await client.close()

        return asyncio.run(go())


@pytest.fixture
def server(plane: ControlPlane, namespace: str) -> Server:
    return Server(plane, namespace)


@pytest.mark.cluster
@pytest.mark.parametrize(("body", "field", "text"), INVALID, ids=[f"{f} {t}" for _, f, t in INVALID])
def test_an_invalid_job_is_refused_by_the_fields_name(server: Server, body: Job, field: str, text: str):
    with pytest.raises(ApiError) as caught:
        server.create(body, dry_run=True)
    assert caught.value.code == 422
    assert field in caught.value.message
    assert text in caught.value.message


@pytest.mark.cluster
@pytest.mark.parametrize(
    "body",
    [
        minimal(),
        with_store(),
        with_store(persistentVolumeClaim=None, url="s3://bucket", secretRef={"name": "s"}),
        with_peers(groupSize=8, parity=2, topologyKey="topology.kubernetes.io/zone", bandwidth="2Gi", encryption="none"),
        with_peers(parity=0, bandwidth=1000000),
        change(workers, "spares", 2),
        change(lambda b: b["spec"], "failurePolicy", {"forceDeletePods": True, "nodes": {"limit": 0, "window": "30m"}}),
        with_every({"steps": 8}),
        with_every({"seconds": 30}),
        with_every({"auto": {}}),
        with_every({"auto": {"minSteps": 4, "maxSteps": 4, "maxSeconds": 60}}),
        change(workers, "processesPerPod", 8),
        change(lambda b: b["spec"], "checkpoint", {"memory": {"size": "2Gi"}}),
        change(lambda b: b["spec"], "checkpoint", {"memory": {"size": 1048576}}),
        change(container, "resources", {"limits": {"nvidia.com/gpu": 1}}),
    ],
)
def test_a_valid_job_is_accepted_and_passed_on_unchanged(server: Server, body: Job):
    made = server.create(body, dry_run=True)
    assert pod_spec(made) == pod_spec(body)


@pytest.mark.cluster
def test_the_limits_of_auto_have_defaults(server: Server):
    made = server.create(with_every({"auto": {}}), dry_run=True)
    assert made["spec"]["checkpoint"]["every"] == {"auto": {"minSteps": 1, "maxSeconds": 600}}


@pytest.mark.cluster
def test_defaults_columns_and_what_can_not_be_changed(plane: ControlPlane, server: Server, namespace: str):
    made = server.create(minimal())
    assert made["spec"]["workers"]["replicas"] == 1
    assert made["spec"]["workers"]["processesPerPod"] == "auto"
    assert made["spec"]["workers"]["spares"] == 0
    peers = {"groupSize": 4, "parity": 1, "topologyKey": "kubernetes.io/hostname", "encryption": "mtls"}
    assert made["spec"]["checkpoint"] == {"memory": {"size": "auto", "slots": 3}, "peers": peers, "stores": []}
    assert made["spec"]["runPolicy"] == {"startupDeadlineSeconds": 600, "hangDeadlineSeconds": 300}
    assert made["spec"]["failurePolicy"] == {
        "forceDeletePods": False,
        "nodes": {"limit": 2, "window": "1h"},
        "restarts": {"limit": 20, "window": "1h", "noProgressLimit": 3},
    }
    for command in (
        ["patch", "tj", "job", "--type=merge", "-p", '{"spec":{"workers":{"replicas":2}}}'],
        ["scale", "tj", "job", "--replicas=2"],
    ):
        with pytest.raises(AssertionError, match=r"elastic jobs"):
            plane.kubectl(*command, "-n", namespace)
    header = plane.kubectl("get", "tj", "-n", namespace).splitlines()[0].split()
    assert header == ["NAME", "STATE", "READY", "STEP", "SAVED", "RESTARTS", "GOODPUT", "AGE"]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"groupSize": 3}),
        ({"groupSize": 3}, {"groupSize": 6}),
        ({"groupSize": 3}, {"groupSize": None}),
        ({}, {"parity": 2}),
        ({"parity": 0}, {"parity": None}),
        ({}, {"topologyKey": "zone"}),
        ({"topologyKey": "zone"}, None),
        ({}, {"encryption": "none"}),
        ({"encryption": "none"}, {"encryption": None}),
        ({}, {"bandwidth": "1Gi"}),
        ({"bandwidth": "1Gi"}, {"bandwidth": 1000}),
        ({"bandwidth": "1Gi"}, {"bandwidth": None}),
        ({"bandwidth": "1Gi"}, None),
    ],
)
def test_what_pods_were_told_of_their_peers_can_not_be_changed(
    plane: ControlPlane, namespace: str, server: Server, before, after
):
    server.create(with_peers(**before))
    patch = json.dumps({"spec": {"checkpoint": {"peers": after}}})
    with pytest.raises(AssertionError, match=rf"checkpoint\.peers\.{next(iter(after or before))}.*can't be changed"):
        plane.kubectl("patch", "tj", "job", "--type=merge", "-p", patch, "-n", namespace)


@pytest.mark.cluster
def test_a_job_whose_peers_stay_the_same_may_be_changed(plane: ControlPlane, namespace: str, server: Server):
    server.create(with_peers(groupSize=3, bandwidth="1Gi"))
    patch = json.dumps({"spec": {"workers": {"spares": 1}, "checkpoint": {"peers": {"parity": 1, "bandwidth": "1Gi"}}}})
    plane.kubectl("patch", "tj", "job", "--type=merge", "-p", patch, "-n", namespace)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
