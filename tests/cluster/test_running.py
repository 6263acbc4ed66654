"""What the running cluster promises to pods: native sidecars, charged memory, addresses, storage, S3, power cuts."""

import contextlib
import json
import time
import urllib.request
from pathlib import Path

import pytest
from holdfast_cluster.config import BRIDGE

from .conftest import BASE, cluster, eventually, sleeper

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

METRICS_PAGE = """
import http.server

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"holdfast_cluster_test 42\\n")

http.server.HTTPServer(("", 9100), Page).serve_forever()
"""


def node_ready(name: str) -> bool:
    nodes = json.loads(cluster("kubectl", "get", "node", name, "-o", "json"))
    return any(c["type"] == "Ready" and c["status"] == "True" for c in nodes["status"]["conditions"])


@pytest.mark.usefixtures("up")
def test_up_again_is_a_no_op():
    began = time.monotonic()
    assert "up already" in cluster("up")
    assert time.monotonic() - began < 20


def test_sidecar_memory_is_charged_to_the_sidecar_and_its_limit_is_real(namespace):
    fault_in = "import os; os.posix_fallocate(os.open('/arena/{}', os.O_CREAT | os.O_RDWR), 0, {} << 20)"
    mount = [{"name": "arena", "mountPath": "/arena"}]
    sidecar = {
        "name": "sidecar",
        "image": BASE,
        "restartPolicy": "Always",
        "command": ["sh", "-c", f'python3 -c "{fault_in.format("a", 128)}" && sleep infinity'],
        "startupProbe": {"exec": {"command": ["test", "-s", "/arena/a"]}, "periodSeconds": 1},
        "resources": {"limits": {"memory": "200Mi"}},
        "volumeMounts": mount,
    }
    trainer = {"volumeMounts": mount, "resources": {"limits": {"memory": "100Mi"}}}
    volumes = [{"name": "arena", "emptyDir": {"medium": "Memory"}}]
    namespace.run("job", sleeper(container=trainer, initContainers=[sidecar], volumes=volumes))

    usage = "print(open('/sys/fs/cgroup/memory/memory.stat').read())"
    lines = namespace.python("job", usage, "-c", "sidecar").stdout.split("\n")
    if any(lines):  # the statistics have this path on cgroup v1 only
        assert f"shmem {128 << 20}" in lines
        assert "shmem 0" in namespace.python("job", usage, "-c", "main").stdout.split("\n")
    assert namespace.python("job", fault_in.format("b", 200), "-c", "sidecar").returncode != 0
    assert namespace.python("job", "print(open('/arena/a', 'rb').read(1))").stdout == "b'\\x00'\n"


def test_pods_reach_each_other_across_nodes_and_the_api_and_names_fail_at_once(namespace):
    for name in ("node-1", "node-3"):
        namespace.run(name, sleeper(nodeSelector={"kubernetes.io/hostname": name}))
    address = namespace.get("pod", "node-1")["status"]["podIP"]
    serve = "import socket; s = socket.create_server(('', 9000))\nwhile c := s.accept()[0]: c.sendall(b'hello'); c.close()"
    namespace.kubectl("exec", "node-1", "--", "sh", "-c", f'python3 -c "{serve}" >/dev/null 2>&1 &')
    call = f"import socket; print(socket.create_connection(('{address}', 9000), 5).recv(9))"
    assert eventually(lambda: namespace.python("node-3", call).stdout, 20) == "b'hello'\n"

    api = (
        "import os, ssl, urllib.request as u; d = '/var/run/secrets/kubernetes.io/serviceaccount/';"
        "c = ssl.create_default_context(cafile=d + 'ca.crt'); t = open(d + 'token').read();"
        "r = u.Request('https://' + os.environ['KUBERNETES_SERVICE_HOST'] + '/version');"
        "r.add_header('Authorization', 'Bearer ' + t);"
        "print(u.urlopen(r, context=c, timeout=5).status)"
    )
    assert namespace.python("node-3", api).stdout == "200\n"

    look_up = (
        "import socket, time; t = time.monotonic()\n"
        "try: socket.gethostbyname('nothing.example')\n"
        "except OSError: print(time.monotonic() - t < 8)"
    )
    assert namespace.python("node-1", look_up).stdout == "True\n"


@pytest.mark.parametrize("image", ["localhost/nothing:1", "registry.example/nothing:1"])
def test_a_missing_image_shows_within_seconds(namespace, image):
    namespace.run("missing", sleeper(container={"image": image}), ready=False)

    def waiting() -> bool:
        states = namespace.get("pod", "missing")["status"].get("containerStatuses", [])
        return any(s["state"].get("waiting", {}).get("reason") in ("ErrImagePull", "ImagePullBackOff") for s in states)

    eventually(waiting, 60)


def test_shared_storage_is_shared_fills_up_and_fails_on_demand(namespace):
    cluster("storage", "claim", f"{namespace.name}/data")
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "runAsNonRoot": True}
    for name in ("node-1", "node-2"):
        mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
        selector = {"kubernetes.io/hostname": name}
        namespace.run(name, sleeper(container=mount, volumes=volumes, nodeSelector=selector, securityContext=user))
    write = "open('/data/{}', 'wb').write(b'x' * 100000)"
    read = "print(len(open('/data/a', 'rb').read()))"
    assert namespace.python("node-1", write.format("a")).returncode == 0
    assert namespace.python("node-2", read).stdout == "100000\n"
    try:
        cluster("storage", "full")
        assert "No space left" in namespace.python("node-2", write.format("b")).stderr
        cluster("storage", "free")
        assert namespace.python("node-2", write.format("b")).returncode == 0
        cluster("storage", "off")
        assert "Permission denied" in namespace.python("node-1", read).stderr
        assert "Permission denied" in namespace.python("node-2", write.format("c")).stderr
    finally:
        cluster("storage", "free")
        cluster("storage", "on")
    assert namespace.python("node-1", read).stdout == "100000\n"


@pytest.mark.usefixtures("up")
def test_s3_keeps_objects_through_a_crash_and_refuses_strangers():
    s3fs = pytest.importorskip("s3fs")
    record = json.loads(cluster("s3", "access"))

    def connect(secret: str):
        s3fs.S3FileSystem.clear_instance_cache()
        client = {"endpoint_url": record["endpoint"], "region_name": record["region"]}
        retries = {"retries": {"max_attempts": 1}, "connect_timeout": 3}
        key = record["access_key"]
        return s3fs.S3FileSystem(key=key, secret=secret, client_kwargs=client, config_kwargs=retries)

    path = f"{record['bucket']}/cluster-test/object"
    files = connect(record["secret_key"])
    files.pipe(path, b"bytes")
    try:
        assert "stopped" in cluster("s3", "stop")
        with pytest.raises(Exception, match=r"(?i)connect"):
            connect(record["secret_key"]).cat(path)
    finally:
        cluster("s3", "start")
    assert connect(record["secret_key"]).cat(path) == b"bytes"
    with pytest.raises(PermissionError):
        connect("wrong").cat(path)
    connect(record["secret_key"]).rm(path)
    secrets = Path(json.loads(cluster("status", "--json"))["s3"]["file"])
    assert secrets.stat().st_mode & 0o077 == 0


def bridge_address() -> str:
    return Path(f"/sys/class/net/{BRIDGE}/address").read_text()


def test_power_cut_is_silent_noticed_and_undone(namespace):
    namespace.run("victim", sleeper(nodeSelector={"kubernetes.io/hostname": "node-3"}))
    address = namespace.get("pod", "victim")["status"]["podIP"]
    namespace.kubectl("exec", "victim", "--", "sh", "-c", "python3 -m http.server 9000 >/dev/null 2>&1 &")
    url = f"http://{address}:9000/"

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return OPENER.open(url, timeout=1).status == 200
        return False

    eventually(answers, 60)
    card, bridge = cluster("exec-node", "node-3", "ip", "-o", "link", "show", "eth0").split("link/ether")[1], bridge_address()
    try:
        cluster("power-off", "node-3")
        assert not answers()
        assert bridge_address() == bridge, "where others find the API server"
        eventually(lambda: not node_ready("node-3"), 30)
        assert json.loads(cluster("status", "--json"))["nodes"]["node-3"]["power"] is False
    finally:
        cluster("power-on", "node-3")
    eventually(lambda: node_ready("node-3"), 30)
    assert cluster("exec-node", "node-3", "ip", "-o", "link", "show", "eth0").split("link/ether")[1] == card, "others know it"

    def restarted() -> bool:
        status = namespace.get("pod", "victim")["status"]
        return all(s["restartCount"] > 0 and s["ready"] for s in status["containerStatuses"])

    eventually(restarted, 60)


def test_partition_cuts_the_wire_and_nothing_else(namespace):
    namespace.run("lonely", sleeper(nodeSelector={"kubernetes.io/hostname": "node-2"}))
    try:
        cluster("partition", "node-2")
        eventually(lambda: not node_ready("node-2"), 30)
        assert "sleep" in cluster("exec-node", "node-2", "ps", "-e", "-o", "comm")
    finally:
        cluster("heal", "node-2")
    eventually(lambda: node_ready("node-2"), 40)
    assert namespace.get("pod", "lonely")["status"]["containerStatuses"][0]["restartCount"] == 0


def test_image_is_built_once_loaded_once_and_runs(namespace, tmp_path):
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE=python:3.11-slim-bookworm\nFROM ${BASE} AS one\nARG WORD\nENV WORD=$WORD\nCOPY a.py /a.py\n"
        'FROM one AS two\nENTRYPOINT ["python", "/a.py"]\n'
    )
    (tmp_path / "a.py").write_text("import os, time\nprint(os.environ['WORD'], flush=True)\ntime.sleep(1000)\n")
    build = ["build-image", "--tag", "cluster-test:1", "--target", "two", "--build-arg", "WORD=kelp", str(tmp_path)]
    cluster(*build)
    assert "cached in" in cluster(*build)
    cluster("load-image", "cluster-test:1")
    assert set(line.partition(": ")[2] for line in cluster("load-image", "cluster-test:1").splitlines()) == {"already there"}
    (tmp_path / "a.py").write_text((tmp_path / "a.py").read_text() + "# changed\n")
    assert "built in" in cluster(*build)
    container = {"name": "main", "image": "localhost/cluster-test:1", "imagePullPolicy": "Never"}
    namespace.run("built", {"terminationGracePeriodSeconds": 0, "containers": [container]})
    assert eventually(lambda: namespace.kubectl("logs", "built"), 10) == "kelp\n"


def test_prometheus_scrapes_an_annotated_pod(namespace):
    notes = {"prometheus.io/scrape": "true", "prometheus.io/port": "9100"}
    namespace.run("metrics", sleeper(container={"command": ["python3", "-c", METRICS_PAGE]}), annotations=notes)
    endpoint = cluster("prometheus", "start").strip()
    query = f"{endpoint}/api/v1/query?query=holdfast_cluster_test%7Bnamespace%3D%22{namespace.name}%22%7D"

    def value() -> str | None:
        found = json.load(OPENER.open(query, timeout=5))["data"]["result"]
        return found[0]["value"][1] if found else None

    assert eventually(value, 60) == "42"
