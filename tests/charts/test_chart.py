"""The chart: what it renders, what it refuses, and that its copies are copies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from holdfast_core.config import METRICS_PORT
from holdfast_core.planner import Job
from holdfast_operator import names, sidecar
from holdfast_operator.settings import Settings
from holdfast_operator.spec import JobSpec

from .conftest import CHART, KUBERNETES, ROOT, Document, Render, of_kind

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
RULES = yaml.safe_load((ROOT / "operator" / "rbac-rules.yaml").read_text())
NAMESPACED = "watch.namespaces={team-a,team-b}"
ALL_MONITORING = [f"monitoring.{name}.enabled=true" for name in ("podMonitor", "serviceMonitor", "prometheusRule", "dashboard")]

Helm = Callable[..., "subprocess.CompletedProcess[str]"]


def test_generated_files_are_fresh() -> None:
    result = subprocess.run(
        [sys.executable, "charts/sync.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_changed_copy_is_noticed(tmp_path: Path) -> None:
    for folder in ("charts", "crds"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "operator").mkdir()
    shutil.copy(ROOT / "operator" / "rbac-rules.yaml", tmp_path / "operator")
    crd = next((tmp_path / "charts/holdfast/files/crds").glob("*.yaml"))
    crd.write_text(crd.read_text() + "# edited\n")
    result = subprocess.run(
        [sys.executable, "charts/sync.py", "--check"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 1
    assert crd.name in result.stderr


def test_lint(helm: Helm) -> None:
    result = helm("lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("settings", [[], [NAMESPACED], ALL_MONITORING, ["crds.install=false"], ["rbac.create=false"]], ids=str)
def test_renders_with_unique_names(render: Render, settings: list[str]) -> None:
    seen = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in render(*settings)]
    assert seen
    assert len(seen) == len(set(seen))


# --- operator


def test_operator_pod_is_locked_down(render: Render) -> None:
    (deployment,) = of_kind(render(), "Deployment")
    spec = deployment["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["ports"] == [{"name": "metrics", "containerPort": 8080, "protocol": "TCP"}]


def test_operator_leaves_a_dead_node_in_seconds_and_keeps_the_users_tolerations(render: Render) -> None:
    """By itself Kubernetes waits for 300 s, in which no job of the cluster would be looked after."""
    documents = render("operator.moveAfterSeconds=7", "operator.tolerations[0].key=dedicated")
    found = of_kind(documents, "Deployment")[0]["spec"]["template"]["spec"]["tolerations"]
    moves = {t["key"]: t["tolerationSeconds"] for t in found if t.get("effect") == "NoExecute"}
    assert moves == {"node.kubernetes.io/unreachable": 7, "node.kubernetes.io/not-ready": 7}
    assert found[-1] == {"key": "dedicated"}


def test_operator_is_told_image_and_namespaces(render: Render) -> None:
    digest = "sha256:" + "a" * 64
    documents = render(NAMESPACED, "sidecar.image.repository=r/s", f"sidecar.image.digest={digest}", "operator.image.tag=v7")
    (container,) = of_kind(documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["HOLDFAST_SIDECAR_IMAGE"] == f"r/s@{digest}"
    assert env["HOLDFAST_NAMESPACES"] == "team-a,team-b"
    assert container["image"] == "holdfast-operator:v7"


def test_service_and_monitor_select_the_operator(render: Render) -> None:
    documents = render(*ALL_MONITORING)
    labels = of_kind(documents, "Deployment")[0]["spec"]["template"]["metadata"]["labels"]
    (service,) = of_kind(documents, "Service")
    (monitor,) = of_kind(documents, "ServiceMonitor")
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


# --- permissions


def granted(documents: list[Document]) -> dict[str, set[tuple[str, str, str]]]:
    """(group, resource, verb) by the scope in which the operator's account may do it."""
    roles = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]): d["rules"] for d in documents if "rules" in d}
    found: dict[str, set[tuple[str, str, str]]] = {}
    for binding in documents:
        if not binding["kind"].endswith("RoleBinding"):
            continue
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "holdfast", "namespace": "holdfast-system"}]
        namespace = binding["metadata"].get("namespace")
        role = binding["roleRef"]
        rules = roles[role["kind"], namespace, role["name"]]
        found.setdefault(namespace or "*", set()).update(flat(rules))
    return found


def flat(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    for rule in rules:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}, f"the chart splits only plain rules: {rule}"
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


CLUSTER_SCOPED = {"nodes", "namespaces", "customresourcedefinitions"}


def is_cluster_scoped(permission: tuple[str, str, str]) -> bool:
    return permission[1].split("/")[0] in CLUSTER_SCOPED


def test_operator_gets_exactly_what_it_uses(render: Render) -> None:
    scopes = granted(render())
    assert set(scopes) <= {"*", "kube-node-lease"}
    assert set().union(*scopes.values()) == flat(RULES)
    assert {resource for _, resource, _ in scopes.get("kube-node-lease", set())} <= {"leases"}


def test_namespaced_operator_reaches_no_further(render: Render) -> None:
    scopes = granted(render(NAMESPACED))
    assert set(scopes) <= {"*", "kube-node-lease", "team-a", "team-b"}
    assert scopes["team-a"] == scopes["team-b"]
    assert all(is_cluster_scoped(p) for p in scopes.get("*", set()))
    assert not any(is_cluster_scoped(p) for p in scopes["team-a"])
    assert set().union(*scopes.values()) == flat(RULES)


@pytest.mark.parametrize("settings", [[], [NAMESPACED]], ids=["cluster", "namespaces"])
def test_nodes_may_be_patched_only_where_they_may_be_tainted(render: Render, settings: list[str]) -> None:
    documents = render("nodeTaints.enabled=true", *settings)
    patch = ("", "nodes", "patch")
    scopes = granted(documents)
    assert patch in scopes["*"]
    assert set().union(*scopes.values()) == flat(RULES) | {patch}
    assert patch not in flat(RULES)
    (container,) = of_kind(documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    assert {"name": "HOLDFAST_TAINT_NODES", "value": "true"} in container["env"]
    (plain,) = of_kind(render(*settings), "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    assert not [e for e in plain["env"] if e["name"] == "HOLDFAST_TAINT_NODES"]


def test_rules_never_mix_scopes() -> None:
    for rule in RULES:
        kinds = {
            "cluster" if r.split("/")[0] in CLUSTER_SCOPED else "lease" if r == "leases" else "job" for r in rule["resources"]
        }
        assert len(kinds) == 1, f"split this rule by scope: {rule}"


def test_users_roles_are_aggregated(render: Render) -> None:
    roles = {d["metadata"]["name"]: d for d in of_kind(render(), "ClusterRole")}
    assert roles["holdfast-edit"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert roles["holdfast-view"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert {verb for _, _, verb in flat(roles["holdfast-view"]["rules"])} == {"get", "list", "watch"}
    assert ("holdfast.dev", "trainingjobs/status", "patch") not in flat(roles["holdfast-edit"]["rules"])


# --- CRDs


def test_crds_are_the_repositorys(render: Render) -> None:
    source = {d["metadata"]["name"]: d for d in (yaml.safe_load(p.read_text()) for p in (ROOT / "crds").glob("*.yaml"))}
    rendered = {d["metadata"]["name"]: d for d in of_kind(render(), "CustomResourceDefinition")}
    assert rendered.keys() == source.keys() != set()
    for name, crd in rendered.items():
        assert crd["spec"] == source[name]["spec"]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_crds_can_be_left_out_or_given_up(render: Render) -> None:
    assert of_kind(render("crds.install=false"), "CustomResourceDefinition") == []
    for crd in of_kind(render("crds.keep=false"), "CustomResourceDefinition"):
        assert "helm.sh/resource-policy" not in crd["metadata"].get("annotations", {})


# --- monitoring


def test_monitoring_needs_the_prometheus_operator(helm: Helm) -> None:
    for name in ("podMonitor", "serviceMonitor", "prometheusRule"):
        setting = f"monitoring.{name}.enabled=true"
        result = helm("template", "holdfast", str(CHART), "--kube-version", KUBERNETES, "--set", setting)
        assert result.returncode != 0
        assert f"monitoring.{name}.enabled needs the Prometheus operator" in result.stderr


def test_rule_and_dashboard_are_the_files(render: Render) -> None:
    documents = render(*ALL_MONITORING)
    (rule,) = of_kind(documents, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    (config,) = of_kind(documents, "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["holdfast.json"]) == json.loads((CHART / "dashboards" / "holdfast.json").read_text())


def test_pod_monitor_finds_the_sidecars_port(render: Render) -> None:
    (monitor,) = of_kind(render(*ALL_MONITORING), "PodMonitor")
    spec = JobSpec(Job("team", "gpt", "0123-uid", replicas=1), {})
    container = sidecar.container(spec, "gpt-0", sidecar.Arena(0, 0), Settings("image"))
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports[monitor["spec"]["podMetricsEndpoints"][0]["port"]] == METRICS_PORT
    assert monitor["spec"]["selector"]["matchExpressions"] == [{"key": names.LABEL_JOB, "operator": "Exists"}]


def test_pod_monitor_stays_in_the_watched_namespaces(render: Render) -> None:
    (everywhere,) = of_kind(render(*ALL_MONITORING), "PodMonitor")
    (some,) = of_kind(render(NAMESPACED, *ALL_MONITORING), "PodMonitor")
    assert everywhere["spec"]["namespaceSelector"] == {"any": True}
    assert some["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


# --- values


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and not {"requests", "grafana_dashboard"} & value.keys():
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def test_every_value_is_described() -> None:
    sys.path.insert(0, str(ROOT / "charts"))
    try:
        import sync
    finally:
        sys.path.remove(str(ROOT / "charts"))
    described = dict(sync.leaves(SCHEMA, SCHEMA))
    assert set(described) == set(leaves(VALUES))
    assert all(described.values()), [path for path, text in described.items() if not text]


def test_defaults_satisfy_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


BAD = {
    "operator.replicas=2": "replicas",
    "operator.image.pullPolicy=Sometimes": "pullPolicy",
    "operator.image.repository=": "repository",
    "sidecar.image.digest=sha256:abc": "digest",
    "watch.namespaces={Team_A}": "namespaces",
    "watch.namespaces=team-a": "namespaces",
    "crds.install=maybe": "install",
    "monitoring.podMonitor.interval=fast": "interval",
    "monitoring.grafana.enabled=true": "grafana",
    "nonsense=1": "nonsense",
}


@pytest.mark.parametrize("setting", BAD, ids=str)
def test_bad_values_are_refused_by_name(helm: Helm, setting: str) -> None:
    result = helm("template", "holdfast", str(CHART), "--set", setting)
    assert result.returncode != 0
    assert BAD[setting] in result.stderr, result.stderr


def notes(helm: Helm, folder: Path, *settings: str) -> str:
    """NOTES.txt as rendered: `helm template` hides it, so that a copy of the chart renders it as an object's text."""
    chart = folder / f"chart-{len(settings)}"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "files" / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text('text: {{ tpl (.Files.Get "files/notes.txt") . | toJson }}\n')
    words = [word for setting in settings for word in ("--set", setting)]
    command = ("template", "holdfast", str(chart), "--namespace", "holdfast-system", "--kube-version", KUBERNETES)
    result = helm(*command, "--show-only", "templates/notes.yaml", *words)
    assert result.returncode == 0, result.stderr
    return str(yaml.safe_load(result.stdout)["text"])


def test_notes_say_what_to_do_next(helm: Helm, tmp_path: Path) -> None:
    text = notes(helm, tmp_path)
    assert "kubectl get trainingjobs" in text
    assert "EVERY TrainingJob" not in text
    assert "EVERY TrainingJob" in notes(helm, tmp_path, "crds.keep=false")


def test_a_too_old_kubernetes_is_refused(helm: Helm) -> None:
    result = helm("template", "holdfast", str(CHART), "--kube-version", "1.28.9")
    assert result.returncode != 0
    assert "kubeVersion" in result.stderr
