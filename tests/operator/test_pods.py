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
    assert sized["limits"] == {"memory": str(256 * mib + 3 * 64 * mib)}
    assert sized["requests"]["memory"] == sized["limits"]["memory"]
    automatic = job(checkpoint={"memory": {"size": "auto", "slots": 2}})
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
    assert [t["weight"] for t in terms] == [1, 100]
    assert [t["key"] for t in made["tolerations"]] == ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]
    assert made["tolerations"][0]["tolerationSeconds"] == 5


def test_suspect_nodes_are_avoided_but_not_forbidden():
    parsed = spec.parse(job())
    made = pods.build(parsed, 0, 2, 0, SETTINGS, avoid=("n1", "n2"))["spec"]["affinity"]["nodeAffinity"]
    assert list(made) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    terms = made["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [t["preference"]["matchFields"][0]["values"] for t in terms] == [["n1"], ["n2"]]
    assert {t["preference"]["matchFields"][0]["operator"] for t in terms} == {"NotIn"}


def test_store_names_make_valid_variable_names():
    assert sidecar.names.env_prefix("my-store") == "HOLDFAST_MY_STORE_"
