"""The pure parts of the local cluster: addresses, findings, names, archives, and what Prometheus is told."""

import io
import ipaddress
import os
import re
import socket
import subprocess
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from holdfast_cluster import cli, cluster, controlplane, discovery, images, preflight, shell, storage
from holdfast_cluster.build import content_key, parse_go_version
from holdfast_cluster.config import ClusterError, Paths, Plan, choose_plan, node_index
from holdfast_cluster.daemon import Daemon
from holdfast_cluster.shell import resume, run

from .conftest import eventually

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", cache=tmp_path / "cache", source=REPOSITORY / "cluster")


def networks(*texts: str) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(text) for text in texts]


def test_parts_of_the_plan_do_not_overlap():
    plan = Plan(77)
    pods = networks(*(plan.pod_subnet(index) for index in range(1, 33)))
    apart = [*pods, *networks(plan.services, "10.77.0.0/24")]
    assert all(part.subnet_of(plan.network) for part in apart)
    assert not any(one.overlaps(other) for one in apart for other in apart if one is not other)
    assert all(subnet.subnet_of(ipaddress.IPv4Network(plan.pods)) for subnet in pods)
    assert ipaddress.IPv4Address(plan.dns_service) in ipaddress.IPv4Network(plan.services)


@pytest.mark.parametrize(
    ("routes", "octet"),
    [([], 77), (["0.0.0.0/0"], 77), (["10.77.3.0/24"], 78), (["10.76.0.0/15", "10.78.0.1/32"], 79), (["172.16.0.0/12"], 77)],
)
def test_plan_avoids_the_machines_routes(routes, octet):
    assert choose_plan(networks(*routes)) == Plan(octet)


def test_no_free_network_is_an_error_that_names_the_range():
    with pytest.raises(ClusterError, match=r"10\.77\.0\.0/16"):
        choose_plan(networks("10.0.0.0/8"))


@pytest.mark.parametrize("name", ["node-0", "node-x", "node", "n-1", "node-33", "../etc", "node-1/.."])
def test_only_node_names_are_nodes(name):
    with pytest.raises(ClusterError, match="node-1"):
        node_index(name)


def machine(**changes: object) -> preflight.Machine:
    usual = {
        "system": "Linux",
        "user": 0,
        "missing_controllers": (),
        "free_gb": {"/var": 100.0},
        "listeners": {},
        "cold": True,
    }
    return preflight.Machine(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"system": "Darwin"}, ["Darwin.*CLUSTER=existing"]),
        ({"user": 1000}, ["not root.*sudo"]),
        ({"missing_controllers": ("memory",)}, ["no cgroup controller memory.*mount"]),
        ({"free_gb": {"/var": 14.0}}, [r"only 14\.0 GB free at /var, 15 GB.*HOLDFAST_CACHE"]),
        ({"free_gb": {"/var": 14.0}, "cold": False}, []),
        ({"listeners": {6443: "k3s (pid 7)"}}, [r"port 6443 \(kube-apiserver\) is taken by k3s \(pid 7\): stop"]),
        ({"listeners": {6443: "a", 7070: "b"}, "free_gb": {"/": 1.0}}, ["only 1.0", "6443", "7070"]),
    ],
)
def test_each_problem_is_one_line_that_says_what_to_do(changes, expected):
    found = preflight.problems(machine(**changes))
    assert len(found) == len(expected)
    for line, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, line)
        assert "\n" not in line


def test_a_real_listener_is_found_with_its_owner(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setitem(preflight.PORTS, "mine", port)
        assert f"(pid {os.getpid()})" in preflight._listeners()[port]


def test_listeners_on_other_addresses_do_not_collide():
    line = "0: {}:192B 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {} 1"
    rows = [
        line.format("00000000", "0A", 1),
        line.format("0100007F", "0A", 2),
        line.format("0501A8C0", "0A", 3),
        line.format("00000000", "01", 4),
        line.format("0" * 32, "0A", 5),
    ]
    assert preflight.parse_listeners(rows) == {"1": 6443, "2": 6443, "5": 6443}


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.19 linux/arm64", (1, 19)), ("", (0, 0))],
)
def test_go_version(text, version):
    assert parse_go_version(text) == version


def test_content_key_follows_content_and_name(tmp_path):
    file = tmp_path / "a"
    file.write_text("1")
    first = content_key([file])
    assert content_key([file]) == first
    file.write_text("2")
    assert content_key([file]) != first
    assert content_key([file], "flags") != content_key([file])


@pytest.mark.parametrize(
    ("tag", "full"),
    [
        ("operator", "localhost/operator:latest"),
        ("operator:1", "localhost/operator:1"),
        ("localhost/a:2", "localhost/a:2"),
        ("team/app", "localhost/team/app:latest"),
        ("registry.example/a/b:3", "registry.example/a/b:3"),
        ("host:5000/a", "host:5000/a:latest"),
    ],
)
def test_image_names_are_completed(tag, full):
    assert images.normalise(tag) == full


@pytest.mark.parametrize(
    ("sources", "mirror"),
    [
        ("deb http://mirror.example/debian bookworm main", ["http://mirror.example/debian"]),
        ("# deb http://x.example/debian\nTypes: deb\nURIs: http://m.example/debian/\n", ["http://m.example/debian/"]),
        ("deb http://m.example/debian-security bookworm-security main", []),
        ("", []),
    ],
)
def test_mirror_comes_from_apts_sources(sources, mirror):
    assert images.first_mirror(sources) == mirror


def test_archive_round_trip(tmp_path):
    layer, archive = tmp_path / "layer.tar", tmp_path / "image.tar"
    with tarfile.open(layer, "w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    images.write_archive(archive, layer, "localhost/x:1", {"Cmd": ["a"]})
    tags, config = images.archive_identity(archive)
    assert tags == ["localhost/x:1"]
    images.write_archive(archive, layer, "localhost/x:1", {"Cmd": ["b"]})
    assert images.archive_identity(archive)[1] != config


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar at all")
    with pytest.raises(ClusterError, match="not a docker-archive"):
        images.archive_identity(tmp_path / "x.tar")


def test_context_is_what_git_would_carry(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    (tmp_path / "build").mkdir()
    for name in ("a.py", "build/b.py"):
        (tmp_path / name).write_text(name)
    assert {file.name for file in images.context_files(tmp_path)} == {".gitignore", "a.py"}


def pod(annotations=None, ports=(), sidecar_ports=(), ip="10.0.0.9", labels=None):
    return {
        "metadata": {"name": "p", "namespace": "ns", "annotations": annotations or {}, "labels": labels or {}},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"ports": list(ports)}],
            "initContainers": [{"ports": list(sidecar_ports)}],
        },
        "status": {"podIP": ip} if ip else {},
    }


SCRAPE = {"prometheus.io/scrape": "true", "prometheus.io/port": "9100"}
METRICS = ({"name": "metrics", "containerPort": 9200},)


@pytest.mark.parametrize(
    ("made", "address"),
    [
        (pod(SCRAPE), "10.0.0.9:9100"),
        (pod(SCRAPE, METRICS), "10.0.0.9:9100"),
        (pod(ports=METRICS), "10.0.0.9:9200"),
        (pod(sidecar_ports=METRICS), "10.0.0.9:9200"),
        (pod({"prometheus.io/scrape": "false"}, METRICS), None),
        (pod({"prometheus.io/scrape": "true"}), None),
        (pod(SCRAPE, ip=None), None),
        (pod(), None),
    ],
)
def test_which_pods_are_scraped(made, address):
    found = discovery.target(made)
    assert (found and found["targets"]) == ([address] if address else None)


def test_a_targets_labels_are_the_pods():
    found = discovery.target(pod(SCRAPE | {"prometheus.io/path": "/m"}, labels={"holdfast.dev/job": "gpt"}))
    labels = {"holdfast_dev_job": "gpt", "namespace": "ns", "pod": "p", "node": "node-1", "__metrics_path__": "/m"}
    assert found["labels"] == labels


def test_what_follows_kubectl_is_passed_on():
    options = cli.parse(["kubectl", "get", "--help", "-o", "json"])
    assert options.arguments == ["get", "--help", "-o", "json"]
    options = cli.parse(["exec-node", "node-2", "ls", "-l"])
    assert (options.node, options.arguments) == ("node-2", ["ls", "-l"])


@pytest.mark.parametrize("words", [["up", "--nodes", "0"], ["up", "--nodes", "x"], ["power-off"], ["nonsense"], []])
def test_bad_command_lines_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        cli.parse(words)
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["up"], ["down"], ["power-off", "node-1"], ["storage", "off"], ["prepare"]])
def test_existing_cluster_takes_no_machine_commands(words, monkeypatch, capsys):
    monkeypatch.setenv("CLUSTER", "existing")
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "does not apply" in error
    assert error.count("\n") == 1


def test_commands_without_a_cluster_say_what_to_do(paths):
    with pytest.raises(ClusterError, match="cluster up"):
        cluster.load(paths)


@pytest.mark.parametrize(("alive", "answers", "healthy"), [(3, [False, True], True), (1, [False, True], False), (3, [], False)])
def test_a_living_cluster_that_answers_late_is_healthy(paths, monkeypatch, alive, answers, healthy):
    """`up` would take it away. A dead component is not waited for, nor one that never answers for longer than it may take."""
    late, checks = iter(answers), iter([True] * alive * len(controlplane.NAMES))
    monkeypatch.setattr(Daemon, "alive", lambda self: next(checks, False))
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    assert cluster._answers(paths, SimpleNamespace(ready=lambda: next(late, False))) is healthy


def test_every_command_is_wired():
    parser_commands = set(cli._PLAIN) | set(cli._NODE) | cli._PASS_THROUGH
    parser_commands |= {"up", "status", "load-image", "build-image", "s3", "storage", "prometheus"}
    assert parser_commands == set(cli.COMMANDS)


def test_old_python_is_told_so():
    source = (REPOSITORY / "cluster/holdfast_cluster/__main__.py").read_text()
    fake = "import sys\nsys.version_info = (3, 9, 0)\n" + source
    done = subprocess.run(["python3", "-c", fake], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Python 3.9 is too old" in done.stderr
    assert "Traceback" not in done.stderr


def test_volume_manifest_can_wait_for_one_claim():
    spec = storage.volume_manifest("v", {"namespace": "a", "name": "b"})["spec"]
    assert spec["claimRef"]["name"] == "b"
    assert spec["hostPath"]["path"].endswith("/volumes/v")
    assert "claimRef" not in storage.volume_manifest("v")["spec"]


@pytest.mark.parametrize("wait_for_all", [True, False])
def test_interrupted_work_ends_at_once_and_without_another_error(wait_for_all):
    """Ctrl-C while parts read their programs' output, and while they are just being started."""
    for _ in range(30):
        errors: list[Exception] = []
        threads = [threading.Thread(target=_run_until_aborted, args=(errors,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        if wait_for_all:
            eventually(lambda: len(shell._running) == 3, 20)
        shell.abort_all()
        for thread in threads:
            thread.join(10)
        late = [thread for thread in threads if thread.is_alive()]
        resume()
        assert not late
        assert {str(error) for error in errors} == {"interrupted"}
        assert len(errors) == 3


def _run_until_aborted(errors: list[Exception]) -> None:
    try:
        run(["sh", "-c", "while :; do echo work; sleep 0.001; done"], timeout=30)
    except (ClusterError, OSError, ValueError) as error:
        errors.append(error)
