"""What a job's pods look like: one whole pod against a golden file, and what must hold for any template."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from holdfast_core import wire
from holdfast_core.config import SidecarConfig
from holdfast_operator import objects, pods, sidecar, spec
from holdfast_operator.pods import Where
from holdfast_operator.settings import Settings
from operator_samples import job, trainer

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = Settings("holdfast-sidecar:1")


def build(body: dict[str, Any], index: int = 1, incarnation: int = 2, slot_bytes: int | None = None) -> dict[str, Any]:
    parsed = spec.parse(body)
    return pods.build(parsed, index, incarnation, parsed.slot_bytes if slot_bytes is None else slot_bytes, SETTINGS)


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["initContainers"] if c["name"] == "holdfast-sidecar")


def env(container: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in container["env"]}


@pytest.mark.parametrize("name", ["pod", "service"])
def test_golden(name: str):
    body = build(job()) if name == "pod" else objects.service(spec.parse(job()))
    file = GOLDEN / f"{name}.json"
    if os.environ.get("HOLDFAST_UPDATE_GOLDEN"):
        file.write_text(json.dumps(body, indent=2) + "\n")
    assert body == json.loads(file.read_text())


def test_the_template_is_not_changed_by_building():
    body = job()
    build(body)
    assert body == job()


def test_names_are_new_for_each_incarnation_and_fit_a_host_name():
    body = job()
    body["metadata"]["name"] = "a" * 40
    first, second = build(body, 0, 1), build(body, 0, 2)
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert len(first["metadata"]["name"]) <= 63
    assert first["spec"]["hostname"] == first["metadata"]["name"]


@pytest.mark.parametrize(
    ("command", "python"),
    [
        (["python", "t.py"], "python"),
        (["/opt/conda/bin/python3.11", "t.py"], "/opt/conda/bin/python3.11"),
        (["bash", "-c", "x"], "python3"),
        (["./train.sh"], "python3"),
        (["pythonic-tool"], "python3"),
    ],
)
def test_the_launcher_runs_with_the_users_interpreter(command: list[str], python: str):
    body = job()
    trainer(body).update(command=command, args=["--x"])
    container = build(body)["spec"]["containers"][0]
    assert container["command"] == [python, "-m", "holdfast.launcher", "--", *command, "--x"]
    assert "args" not in container


def test_python_path_keeps_what_the_user_set():
    lib = "/holdfast/shared/lib"
    body = job()
    assert env(build(body)["spec"]["containers"][0])["PYTHONPATH"] == f"{lib}:/app"
    trainer(body)["env"] = []
    assert env(build(body)["spec"]["containers"][0])["PYTHONPATH"] == lib
    trainer(body)["env"] = [{"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]
    made = build(body)["spec"]["containers"][0]["env"]
    names = [e["name"] for e in made]
    assert names.index("HOLDFAST_USER_PYTHONPATH") < names.index("PYTHONPATH")
    assert env({"env": made})["PYTHONPATH"] == f"{lib}:$(HOLDFAST_USER_PYTHONPATH)"


def test_other_containers_are_left_alone():
    body = job()
    other = {"name": "logger", "image": "l", "command": ["x"]}
    body["spec"]["workers"]["template"]["spec"]["containers"].append(other)
    assert build(body)["spec"]["containers"][1] == other


def test_the_users_init_containers_come_after_the_sidecar():
    body = job()
    body["spec"]["workers"]["template"]["spec"]["initContainers"] = [{"name": "fetch"}]
    assert [c["name"] for c in build(body)["spec"]["initContainers"]] == ["holdfast-sidecar", "fetch"]


def test_only_the_sidecar_sees_claims_and_the_key():
    pod = build(job())
    trainer_mounts = {m["name"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert trainer_mounts == {"holdfast-shared"}
    assert {m["name"] for m in sidecar_of(pod)["volumeMounts"]} == {"holdfast-shared", "holdfast-tls", "holdfast-store-pvc"}


def test_the_sidecar_runs_without_rights():
    context = sidecar_of(build(job()))["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_sidecar_knows_its_ranks_and_stores():
    body = job()
    body["spec"]["workers"]["processesPerPod"] = 4
    made = wire.loads(SidecarConfig, env(sidecar_of(build(body)))["HOLDFAST_CONFIG"])
    assert (made.first_rank, made.processes, made.world_size) == (4, 4, 8)
    assert [(s.name, s.url, s.every_steps, s.every_seconds, s.env_prefix) for s in made.stores] == [
        ("pvc", "file:///holdfast/stores/pvc/runs/team/gpt", 5, None, ""),
        ("s3", "s3://bucket/prefix/team/gpt", None, 30.0, "HOLDFAST_S3_"),
    ]


def test_memory_is_limited_only_where_the_user_gave_a_size():
    mib = 2**20
    sized = sidecar_of(build(job()))["resources"]
    assert sized["limits"] == {"memory": str(256 * mib + 3 * 64 * mib + 2 * 64 * mib)}  # three slots, two parities of a pair
    assert sized["requests"]["memory"] == sized["limits"]["memory"]
    automatic = job(checkpoint={"memory": {"size": "auto", "slots": 2}, "peers": {"parity": 0}})
    assert sidecar_of(build(automatic, slot_bytes=0))["resources"] == {"requests": {"cpu": "50m", "memory": str(256 * mib)}}
    remembered = sidecar_of(build(automatic, slot_bytes=10 * mib))
    assert remembered["resources"]["requests"]["memory"] == str(256 * mib + 2 * 10 * mib)
    assert wire.loads(SidecarConfig, env(remembered)["HOLDFAST_CONFIG"]).slot_bytes == 10 * mib


def test_gpus_give_the_number_of_processes():
    body = job()
    trainer(body)["resources"] = {"limits": {"nvidia.com/gpu": "4", "cpu": "8"}}
    assert spec.parse(body).job.processes == 4
    body["spec"]["workers"]["processesPerPod"] = 2
    assert spec.parse(body).job.processes == 2


def test_the_users_own_choices_win_or_are_merged():
    body = job()
    mine = {"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}
    body["spec"]["workers"]["template"]["spec"] |= {
        "automountServiceAccountToken": True,
        "securityContext": {"fsGroup": 1000, "runAsUser": 1000},
        "affinity": {
            "nodeAffinity": {"x": 1},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [mine]},
        },
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}],
    }
    made = build(body)["spec"]
    assert made["automountServiceAccountToken"] is True
    assert made["securityContext"] == {"fsGroup": 1000, "runAsUser": 1000}
    assert made["affinity"]["nodeAffinity"] == {"x": 1}
    terms = made["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [t["weight"] for t in terms] == [1, 10]
    assert [t["key"] for t in made["tolerations"]] == ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]
    assert made["tolerations"][0]["tolerationSeconds"] == 5


PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def node_affinity(body: dict[str, Any], where: Where) -> dict[str, Any]:
    made: dict[str, Any] = pods.build(spec.parse(body), 0, 2, 0, SETTINGS, where)["spec"]["affinity"]["nodeAffinity"]
    return made


def fields(*nodes: str) -> list[dict[str, Any]]:
    return [{"key": "metadata.name", "operator": "NotIn", "values": [n]} for n in nodes]  # the API allows one value each


def test_suspect_nodes_are_rather_not_used_but_not_forbidden():
    made = node_affinity(job(), Where(rather_not=("n1", "n2")))
    assert list(made) == [PREFERRED]
    assert [t["preference"] for t in made[PREFERRED]] == [{"matchFields": fields("n1", "n2")}], "on either is as bad as can be"


def test_pods_on_suspect_nodes_weigh_more_than_those_that_live():
    """Else a dead node with one pod on it is better than the only live one, which has two."""
    lost = pods.identity(pods.build(spec.parse(job()), 1, 3, 0, SETTINGS))
    assert set(lost) == {"holdfast.dev/job-uid", "holdfast.dev/index", "holdfast.dev/incarnation"}
    made = pods.build(spec.parse(job()), 0, 2, 0, SETTINGS, Where(rather_not=("n1",), lost=(lost,)))["spec"]
    terms = made["affinity"]["podAntiAffinity"][PREFERRED]
    apart = [(t["weight"], t["podAffinityTerm"]["labelSelector"]["matchLabels"]) for t in terms]
    assert made["topologySpreadConstraints"], "or the scheduler's own spreading speaks for the dead node"
    assert "topologySpreadConstraints" not in build(job())["spec"]
    assert apart == [(10, {"holdfast.dev/job-uid": lost["holdfast.dev/job-uid"]}), (100, lost)]


def test_avoided_nodes_are_forbidden():
    made = node_affinity(job(), Where(never=("n1", "n2"), rather_not=("n3",)))
    assert made[REQUIRED] == {"nodeSelectorTerms": [{"matchFields": fields("n1", "n2")}]}
    assert len(made[PREFERRED]) == 1


def test_avoided_nodes_are_left_out_of_each_of_the_users_terms():
    """One term must be met; an empty one never is, and must not become one that any other node meets."""
    fast, small = ({"matchExpressions": [{"key": k, "operator": "Exists"}]} for k in ("fast", "small"))
    body = job()
    body["spec"]["workers"]["template"]["spec"]["affinity"] = {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [fast, {}, small]}}
    }
    made = node_affinity(body, Where(never=("n1",)))[REQUIRED]["nodeSelectorTerms"]
    assert made == [fast | {"matchFields": fields("n1")}, {}, small | {"matchFields": fields("n1")}]


def test_pods_are_spread_over_hosts_and_over_what_fails_together():
    def keys(body: dict[str, Any]) -> list[str]:
        terms = build(body)["spec"]["affinity"]["podAntiAffinity"]
        assert list(terms) == [PREFERRED]  # a cluster that is too small is no reason not to train
        return [t["podAffinityTerm"]["topologyKey"] for t in terms[PREFERRED]]

    assert keys(job()) == ["kubernetes.io/hostname"]
    zoned = job(checkpoint={"peers": {"topologyKey": "topology.kubernetes.io/zone"}})
    assert keys(zoned) == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_a_spare_is_a_worker_without_index():
    parsed = spec.parse(job())
    worker, spare = pods.build(parsed, 1, 1, 0, SETTINGS), pods.build_spare(parsed, 7, 0, SETTINGS)
    assert spare["metadata"]["name"] == "gpt-0a1b2-s7-1"
    labels = spare["metadata"]["labels"]
    assert (labels["holdfast.dev/spare"], labels["holdfast.dev/incarnation"]) == ("7", "1")
    assert "holdfast.dev/index" not in labels
    assert labels.items() >= objects.service(parsed)["spec"]["selector"].items()
    told = wire.loads(SidecarConfig, env(sidecar_of(spare))["HOLDFAST_CONFIG"])
    assert (told.index, told.first_rank, told.processes, told.world_size) == (-1, 0, 1, 2)
    for part in ("containers", "affinity", "volumes", "tolerations"):
        assert spare["spec"][part] == worker["spec"][part]


@pytest.mark.parametrize(
    ("replicas", "peers", "parity"),
    [
        (1, {}, 0.0),  # nobody to protect
        (4, {"parity": 0}, 0.0),
        (2, {}, 1.0),  # a pair: copies
        (4, {}, 1 / 3),
        (5, {}, 1.0),  # groups of three and two
        (8, {"groupSize": 8, "parity": 2}, 1 / 3),
    ],
)
def test_the_sidecars_memory_has_room_for_parity_twice(replicas: int, peers: dict[str, Any], parity: float):
    size = 48 * 2**20
    body = job(checkpoint={"memory": {"size": size, "slots": 3}, "peers": peers})
    body["spec"]["workers"]["replicas"] = replicas
    memory = int(sidecar_of(build(body))["resources"]["limits"]["memory"])
    assert memory == pytest.approx(256 * 2**20 + size * (3 + 2 * parity), abs=3 * 4096)


def test_store_names_make_valid_variable_names():
    assert sidecar.names.env_prefix("my-store") == "HOLDFAST_MY_STORE_"
