"""One node: its namespaces, its configuration files, and its power switch.

`node_init` is what runs inside as process 1. Killing that process is a power-off: the kernel takes the whole pid
namespace, every container included, with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from holdfast_cluster import cgroups, network
from holdfast_cluster.build import component
from holdfast_cluster.config import (
    MARKER,
    PAUSE_IMAGE,
    SHARED_IN_NODE,
    ClusterError,
    Paths,
    Plan,
    node_index,
)
from holdfast_cluster.daemon import keep, recall, remember
from holdfast_cluster.images import in_node
from holdfast_cluster.shell import succeeds, tail, wait_until

LEASE_SECONDS = 8
"""kubelet renews its Lease every quarter of this."""


def pid_file(paths: Paths, node: str) -> Path:
    """Where the pid of the node's process 1 is noted."""
    return paths.run / f"{node}.json"


def init_pid(paths: Paths, node: str) -> int | None:
    """Pid of the node's process 1 as the machine sees it; None while the node is off."""
    return recall(pid_file(paths, node))


def running_nodes(paths: Paths, names: list[str]) -> dict[str, int]:
    """{node: pid of its process 1} of the nodes that have power."""
    pids = {name: init_pid(paths, name) for name in names}
    return {name: pid for name, pid in pids.items() if pid is not None}


def power_on(paths: Paths, plan: Plan, node: str, nodes: int) -> None:
    """Boots a node: namespaces, wires, then containerd, kubelet and kube-proxy. Its disk is what it was."""
    if init_pid(paths, node) is not None:
        raise ClusterError(f"{node} is on already")
    network.remove_link(node)
    cgroups.remove(node)
    cgroups.make(node)
    _write_configs(paths, plan, node)
    process = _spawn(paths, node)
    keep(process)
    assert process.stdin is not None
    boot = paths.node(node) / "boot-pid"
    wait_until(lambda: process.poll() is not None or boot.exists(), timeout=20, what=f"{node} does not boot", every=0.05)
    if process.poll() is not None:
        raise ClusterError(f"{node} did not boot:\n{tail(paths.logs / f'{node}.log')}")
    pid = int(boot.read_text(encoding="ascii"))
    remember(pid_file(paths, node), pid)
    network.connect_node(plan, node, pid, nodes)
    process.stdin.write(b"go\n")
    process.stdin.close()


def _spawn(paths: Paths, node: str) -> subprocess.Popen[bytes]:
    (paths.node(node) / "boot-pid").unlink(missing_ok=True)
    paths.logs.mkdir(parents=True, exist_ok=True)
    unshare = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork"]
    with (paths.logs / f"{node}.log").open("ab") as log:
        return subprocess.Popen(
            [*unshare, sys.executable, "-m", "holdfast_cluster.node_init", str(paths.node(node) / "boot.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(paths.source), MARKER: str(paths.state)},
            cwd="/",
            start_new_session=True,
        )


def power_off(paths: Paths, node: str) -> None:
    """Cuts the power: first the wire, so that no dying socket says goodbye, then everything at once."""
    pid = init_pid(paths, node)
    if pid is None:
        raise ClusterError(f"{node} is off already")
    with contextlib.suppress(ClusterError):
        network.set_link(node, up=False)
    kill_init(paths, node)


def kill_init(paths: Paths, node: str) -> None:
    """Kills a node's process 1 and waits until its pid namespace is empty."""
    pid = init_pid(paths, node)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: init_pid(paths, node) is None, timeout=30, what=f"{node} does not die", every=0.05)
    pid_file(paths, node).unlink(missing_ok=True)
    network.remove_link(node)
    # They would not outlive a real machine, and stale ones cost the next kubelet 20 s of looking for their containers.
    cgroups.remove(node)


def container_runtime_ready(paths: Paths, node: str) -> bool:
    """Whether the node's containerd answers."""
    pid = init_pid(paths, node)
    return pid is not None and succeeds(in_node(pid, "ctr", "version"), timeout=10)


def exec_in(paths: Paths, node: str, words: list[str]) -> int:
    """Runs a command inside the node with this terminal and returns its exit status."""
    node_index(node)
    pid = init_pid(paths, node)
    if pid is None:
        raise ClusterError(f"{node} is off: `cluster power-on {node}` first")
    return subprocess.call(in_node(pid, *words))


def logs(paths: Paths, node: str) -> list[Path]:
    """A node's own logs, the likeliest culprit first."""
    names = (f"{node}.kubelet.log", f"{node}.containerd.log", f"{node}.kube-proxy.log", f"{node}.log")
    return [paths.logs / name for name in names]


def _write_configs(paths: Paths, plan: Plan, node: str) -> None:
    folder = paths.node(node)
    disk = folder / "var-lib"
    for sub in ("containerd", "kubelet", "cni/net.d", "holdfast-shared"):
        (disk / sub).mkdir(parents=True, exist_ok=True)
    (folder / "var-log").mkdir(exist_ok=True)
    _write(folder / "containerd.toml", containerd_config())
    _write(folder / "kubelet.json", json.dumps(kubelet_config(paths, plan, node), indent=1))
    _write(folder / "kube-proxy.json", json.dumps(_proxy_config(paths, plan, node), indent=1))
    _write(disk / "cni/net.d/10-holdfast.conflist", json.dumps(_cni_config(plan.pod_subnet(node_index(node)))))
    boot = {
        "node": node,
        # Folders that must stay in sight; the first is the state folder, in which the bound ones lie.
        "kept": [str(paths.state), str(paths.cache)],
        "binds": {f"nodes/{node}/var-lib": "/var/lib", f"nodes/{node}/var-log": "/var/log"},
        "shared": [str(paths.shared.relative_to(paths.state)), str(SHARED_IN_NODE)],
        "logs": str(paths.logs),
        "pid_file": str(folder / "boot-pid"),
        "sysctls": {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"},
        "services": _services(paths, plan, node),
    }
    _write(folder / "boot.json", json.dumps(boot, indent=1))


def _services(paths: Paths, plan: Plan, node: str) -> dict[str, list[str]]:
    folder = paths.node(node)
    kubelet = [
        str(component(paths, "kubelet")),
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={paths.pki / f'{node}.kubeconfig'}",
        f"--hostname-override={node}",
        f"--node-ip={plan.node_address(node_index(node))}",
        "--cert-dir=/var/lib/kubelet/pki",
        "--housekeeping-interval=15s",
        "-v=1",
    ]
    return {
        "containerd": [shutil.which("containerd") or "containerd", "--config", str(folder / "containerd.toml")],
        "kubelet": kubelet,
        "kube-proxy": [str(component(paths, "kube-proxy")), f"--config={folder / 'kube-proxy.json'}", "-v=1"],
    }


def _write(target: Path, text: str) -> None:
    target.write_text(text, encoding="utf-8")


def containerd_config() -> str:
    """containerd 1.6: overlayfs, cgroupfs, and no lowering of OOM scores, which some machines forbid even to root."""
    unused = ("snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.aufs", "snapshotter.v1.devmapper")
    disabled = ", ".join(f'"io.containerd.{plugin}"' for plugin in (*unused, "internal.v1.opt"))
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [{disabled}]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/var/lib/cni/net.d"
"""


def kubelet_config(paths: Paths, plan: Plan, node: str) -> dict[str, object]:
    """kubelet's configuration; what is not named keeps Kubernetes's default, the crash back-off above all."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.node_group(node),
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [plan.dns_service],
        "clusterDomain": "cluster.local",
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        # The machine's disk is everybody's: a full one must not taint nodes or delete images that nothing can pull.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 60,
    }


def _proxy_config(paths: Paths, plan: Plan, node: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(paths.pki / "kube-proxy.kubeconfig")},
        "hostnameOverride": node,
        "clusterCIDR": plan.pods,
        "mode": "nftables",
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def _cni_config(subnet: str) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        # In /run: leases die with the node's power, as its pods do.
        "ipam": {"type": "host-local", "dataDir": "/run/cni-leases", "ranges": [[{"subnet": subnet}]]},
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "0.4.0", "name": "holdfast", "plugins": plugins}
