"""From nothing to nothing: whatever happens to a cluster, `down` leaves the machine as it was.

These tests end the running cluster and bring a fresh one up after them; they refuse to while somebody's workloads run.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from holdfast_cluster import cgroups, cleanup
from holdfast_cluster.config import paths_from_environment

from .conftest import COMMAND, cluster, eventually, sleeper

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
OWN = {"default", "kube-node-lease", "kube-public", "kube-system"}
SETTINGS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/bridge/bridge-nf-call-iptables")


def traces() -> dict[str, list[str]]:
    """What of a cluster the machine shows, found without the cluster's own means."""

    def output(*words: str) -> list[str]:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()

    state = str(paths_from_environment().state)
    groups = subprocess.run(["find", "/sys/fs/cgroup", "-name", "holdfast-*"], capture_output=True, text=True, check=False)
    return {
        "processes": [line for line in output("ps", "-e", "-o", "args") if state in line or "shim-runc" in line],
        "links": [line for line in output("ip", "-br", "link") if line.startswith("hf")],
        "routes": [line for line in output("ip", "route", "show", "table", "all") if "hfbr" in line],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if state in line],
        "loops": [line for line in output("losetup", "--list") if state in line],
        "tables": [line for line in output("nft", "list", "tables") if "kube" in line or "holdfast" in line],
        "namespaces": output("ip", "netns", "list"),
        "cgroups": groups.stdout.splitlines(),
        "state": [state] if Path(state).exists() else [],
    }


def assert_clean(settings: dict[str, str]) -> None:
    assert cleanup.leftovers(paths_from_environment()) == []
    assert {kind: found for kind, found in traces().items() if found} == {}
    assert kernel_settings() == settings


def kernel_settings() -> dict[str, str]:
    places = {name: Path("/proc/sys") / name for name in SETTINGS}
    return {name: place.read_text() for name, place in places.items() if place.exists()}


@pytest.fixture(scope="module")
def machine(up: None):
    """A machine without a cluster, and its kernel settings; the cluster is brought back afterwards."""
    names = json.loads(cluster("kubectl", "get", "namespaces", "-o", "json"))["items"]
    others = [
        item["metadata"]["name"]
        for item in names
        if item["metadata"]["name"] not in OWN and not item["metadata"]["name"].startswith("cluster-test-")
    ]
    if others:
        pytest.skip(f"somebody works in {', '.join(others)}: delete those namespaces first")
    cluster("down")
    yield kernel_settings()
    cluster("up", timeout=300)


@pytest.fixture
def settings(machine):
    assert_clean(machine)
    yield machine
    cluster("down")


def kill_members() -> None:
    """Kills every process of the cluster at once, as nothing but a lost machine would."""
    paths = paths_from_environment()
    for pid in cleanup.members(paths):
        with contextlib.suppress(ProcessLookupError):  # it went with the node that it ran on
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not cleanup.members(paths), 20)


def test_everything_killed_at_once_and_down_leaves_nothing(settings):
    cluster("up")
    eventually(lambda: cluster("kubectl", "get", "sa", "default", check=False), 20)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": sleeper()}
    cluster("kubectl", "apply", "-f", "-", stdin=json.dumps(pod))
    cluster("kubectl", "wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
    kill_members()
    left = traces()
    assert left["mounts"]
    assert left["cgroups"]
    assert left["links"]
    cluster("down")
    assert_clean(settings)
    assert "no cluster" in cluster("down")


def test_up_takes_over_from_a_cluster_that_was_killed(settings):
    cluster("up", "--nodes", "1")
    kill_members()
    cluster("up", "--nodes", "1")
    assert cluster("kubectl", "get", "nodes", "-o", "name") == "node/node-1\n"


@pytest.mark.parametrize(
    ("sign", "number"),
    [
        ("bridge", signal.SIGKILL),
        ("node", signal.SIGINT),
        ("node", signal.SIGTERM),
        ("node", signal.SIGKILL),
        ("api", signal.SIGINT),
        ("api", signal.SIGKILL),
    ],
)
def test_up_interrupted_half_way_leaves_nothing(settings, sign, number):
    paths = paths_from_environment()
    signs = {
        "bridge": lambda: traces()["links"],
        "node": lambda: bool(cgroups.ours("node-2")),
        "api": (paths.run / "kube-apiserver.json").exists,
    }
    command = ["env", "--default-signal=INT", str(COMMAND), "up"]  # a shell starts background jobs with SIGINT ignored
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    eventually(signs[sign], 60)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert cleanup.leftovers(paths)
        cluster("down")
    else:
        assert process.returncode == 130, output
    assert_clean(settings)


def test_up_says_in_one_line_that_a_port_is_taken(settings):
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 7070)); print(flush=True); time.sleep(60)"
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE) as thief:
        assert thief.stdout
        thief.stdout.readline()
        try:
            done = subprocess.run([str(COMMAND), "up"], capture_output=True, text=True, timeout=60, check=False)
        finally:
            thief.kill()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"cluster: port 7070 (s3) is taken by python3 (pid {thief.pid}): stop that program"]
    assert_clean(settings)


def test_not_root_is_one_line():
    began = time.monotonic()
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "python3", "-m", "holdfast_cluster", "up"],
        capture_output=True,
        text=True,
        cwd=COMMAND.parent,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "not root" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 20
