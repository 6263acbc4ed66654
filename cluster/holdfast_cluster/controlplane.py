"""etcd, API server, controller manager and scheduler as plain processes."""

from __future__ import annotations

import ssl
import urllib.request

from holdfast_cluster.api import Api
from holdfast_cluster.build import component
from holdfast_cluster.config import PORTS, ClusterError, Paths, Plan
from holdfast_cluster.daemon import Daemon
from holdfast_cluster.shell import run, wait_until

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE_GRACE_SECONDS = 16
"""A node that has not reported for this long becomes NotReady; nodes report every 2 to 4 s."""


def start(paths: Paths, plan: Plan) -> Api:
    """Starts the control plane and waits until the API server is ready."""
    _start_etcd(paths)
    server = Daemon("kube-apiserver", paths)
    server.start([component(paths, server.name), *_apiserver_flags(paths, plan)])
    api = Api(paths.kubeconfig)
    server.wait_ready(api.ready, timeout=90)
    for name, flags in (("kube-controller-manager", _manager_flags(paths)), ("kube-scheduler", [])):
        config = str(paths.pki / f"{name}.kubeconfig")
        common = ["--kubeconfig", config, "--leader-elect=false", "--secure-port=0", "--profiling=false", "-v=1"]
        Daemon(name, paths).start([component(paths, name), *common, *flags])
    return api


def check_alive(paths: Paths) -> None:
    """Raises ClusterError with the end of the log of the first component that died."""
    for name in NAMES:
        Daemon(name, paths).wait_ready(lambda: True, timeout=1)


def _start_etcd(paths: Paths) -> None:
    # In memory: the cluster lives as long as its state folder's mounts, and etcd's fsyncs would compete with builds.
    paths.etcd.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "-o", "size=1g,mode=700", "holdfast-etcd", paths.etcd])
    client = f"https://127.0.0.1:{PORTS['etcd']}"
    peer = f"https://127.0.0.1:{PORTS['etcd peer']}"
    daemon = Daemon("etcd", paths)
    flags = {
        "name": "holdfast",
        "data-dir": str(paths.etcd / "data"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"holdfast={peer}",
        "auto-compaction-retention": "5m",
        "quota-backend-bytes": str(768 << 20),
        "log-level": "error",
        "logger": "zap",
    }
    # Who can write to etcd owns the cluster, and through privileged pods the machine: only our certificate may.
    for prefix in ("", "peer-"):
        flags |= {f"{prefix}cert-file": str(paths.pki / "etcd.crt"), f"{prefix}key-file": str(paths.pki / "etcd.key")}
        flags |= {f"{prefix}client-cert-auth": "true", f"{prefix}trusted-ca-file": str(paths.pki / "ca.crt")}
    daemon.start(["etcd", *(f"--{name}={value}" for name, value in flags.items())])
    daemon.wait_ready(lambda: _answers(paths, client), timeout=30)


def _answers(paths: Paths, url: str) -> bool:
    tls = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
    tls.load_cert_chain(paths.pki / "etcd.crt", paths.pki / "etcd.key")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    try:
        with opener.open(f"{url}/health", timeout=2) as response:
            return b'"true"' in response.read()
    except OSError:
        return False


def _apiserver_flags(paths: Paths, plan: Plan) -> list[str]:
    pki = paths.pki
    return [
        f"--etcd-servers=https://127.0.0.1:{PORTS['etcd']}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--bind-address={plan.bridge_address}",
        f"--advertise-address={plan.bridge_address}",
        f"--secure-port={PORTS['kube-apiserver']}",
        f"--service-cluster-ip-range={plan.services}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        "--profiling=false",
        "-v=1",
    ]


def _manager_flags(paths: Paths) -> list[str]:
    return [
        f"--service-account-private-key-file={paths.pki / 'service-account.key'}",
        f"--root-ca-file={paths.pki / 'ca.crt'}",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=false",
        "--node-monitor-period=2s",
        f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
    ]


def apply_basics(api: Api, plan: Plan) -> None:
    """What every cluster needs: kube-proxy's rights, a DNS Service that refuses at once, Prometheus's rights."""
    bindings = {
        "holdfast-kube-proxy": ("system:node-proxier", "system:kube-proxy"),
        "holdfast-prometheus": ("view", "holdfast-prometheus"),
    }
    wait_until(lambda: _has(api, "/api/v1/namespaces/kube-system"), timeout=30, what="namespace kube-system")
    for name, (role, user) in bindings.items():
        api.apply(_binding(name, role, user))
    ports = [{"name": kind.lower(), "port": 53, "protocol": kind} for kind in ("UDP", "TCP")]
    spec = {"clusterIP": plan.dns_service, "ports": ports}
    meta = {"name": "kube-dns", "namespace": "kube-system"}
    api.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})


def _binding(name: str, role: str, user: str) -> dict[str, object]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def default_account_made(api: Api) -> bool:
    """Whether the controller manager has made the default service account, without which no pod is admitted."""
    return _has(api, "/api/v1/namespaces/default/serviceaccounts/default")


def _has(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ClusterError:
        return False
    return True
