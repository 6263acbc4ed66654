"""Names, places and addresses of the local cluster: everything that other modules must agree on.

All links, cgroups, mounts and processes carry one of the names below, so that `cleanup` finds exactly what is ours.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "1.34.4"
DEBIAN = "bookworm"
BASE_IMAGE = "localhost/holdfast-base:bookworm"
PAUSE_IMAGE = "localhost/holdfast-pause:1"

BRIDGE = "hfbr0"
LINK_PREFIX = "hfv-"
CGROUP = "holdfast-cluster"
MARKER = "HOLDFAST_CLUSTER_MEMBER"
"""Environment variable that every process of the cluster carries, with the state folder as its value."""

PORTS = {"etcd": 12379, "etcd peer": 12380, "kube-apiserver": 6443, "s3": 7070, "prometheus": 9090}
BUCKET = "holdfast"
SHARED_IN_NODE = Path("/var/lib/holdfast-shared")
MAX_NODES = 32


class ClusterError(Exception):
    """Something that a user can act on; its text is one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Plan:
    """The cluster's addresses, carved out of one /16 (`10.B.0.0/16`).

    The first /24 holds the bridge (.1) and the nodes (.11 and up), the second quarter one /24 of pods for each node,
    and the upper half the Services.
    """

    second_octet: int

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The whole /16."""
        return ipaddress.IPv4Network(f"10.{self.second_octet}.0.0/16")

    @property
    def bridge_address(self) -> str:
        """The machine's own address on the bridge: API server, S3 and Prometheus listen there."""
        return f"10.{self.second_octet}.0.1"

    def node_address(self, index: int) -> str:
        """Address of node `index` (from 1)."""
        return f"10.{self.second_octet}.0.{10 + index}"

    def pod_subnet(self, index: int) -> str:
        """The /24 that node `index` gives its pods addresses from."""
        return f"10.{self.second_octet}.{64 + index}.0/24"

    @property
    def pods(self) -> str:
        """All nodes' pod subnets."""
        return f"10.{self.second_octet}.64.0/18"

    @property
    def services(self) -> str:
        """The range of Services' addresses."""
        return f"10.{self.second_octet}.128.0/17"

    @property
    def api_service(self) -> str:
        """Address of the `kubernetes` Service."""
        return f"10.{self.second_octet}.128.1"

    @property
    def dns_service(self) -> str:
        """Address of the DNS Service, which has no end points."""
        return f"10.{self.second_octet}.128.10"

    @property
    def api_url(self) -> str:
        """Where the API server is."""
        return f"https://{self.bridge_address}:{PORTS['kube-apiserver']}"

    @property
    def s3_url(self) -> str:
        """Where the S3 server is."""
        return f"http://{self.bridge_address}:{PORTS['s3']}"


def choose_plan(routes: Iterable[ipaddress.IPv4Network]) -> Plan:
    """The first plan whose /16 overlaps none of the machine's routes (the default route does not count).

    Raises ClusterError when the whole range is taken.
    """
    taken = [route for route in routes if route.prefixlen > 0]
    for octet in range(77, 128):
        plan = Plan(octet)
        if not any(plan.network.overlaps(route) for route in taken):
            return plan
    raise ClusterError("no free network between 10.77.0.0/16 and 10.127.0.0/16: remove a route (`ip route`)")


def node_names(count: int) -> list[str]:
    """`node-1` to `node-<count>`."""
    return [f"node-{index}" for index in range(1, count + 1)]


def node_index(name: str) -> int:
    """The number in `node-N`; raises ClusterError for any other name."""
    head, _, number = name.partition("-")
    if head != "node" or not number.isdecimal() or not 1 <= int(number) <= MAX_NODES:
        raise ClusterError(f"{name!r} is not a node of the local cluster: nodes are called node-1, node-2, ...")
    return int(number)


@dataclass(frozen=True)
class Paths:
    """Where things lie: `state` is one cluster's life and goes with `down`; `cache` is content-addressed and stays."""

    state: Path
    cache: Path
    source: Path

    @property
    def logs(self) -> Path:
        """One log a component."""
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        """Keys, certificates, tokens and the components' kubeconfigs."""
        return self.state / "pki"

    @property
    def run(self) -> Path:
        """Pid files."""
        return self.state / "run"

    @property
    def shared(self) -> Path:
        """Mount point of the file system that all nodes share."""
        return self.state / "shared"

    @property
    def etcd(self) -> Path:
        """Mount point of etcd's memory."""
        return self.state / "etcd"

    @property
    def kubeconfig(self) -> Path:
        """The user's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def record(self) -> Path:
        """What `up` decided."""
        return self.state / "cluster.json"

    @property
    def sysctls(self) -> Path:
        """The kernel settings as they were before."""
        return self.state / "sysctls.json"

    @property
    def s3_file(self) -> Path:
        """Endpoint and credentials of the S3 server."""
        return self.state / "s3.json"

    def node(self, name: str) -> Path:
        """A node's disk and configuration."""
        return self.state / "nodes" / name


def paths_from_environment() -> Paths:
    """Folders from HOLDFAST_CLUSTER_STATE and HOLDFAST_CACHE, or their defaults."""
    cache = os.environ.get("HOLDFAST_CACHE") or str(Path.home() / ".cache" / "holdfast")
    state = os.environ.get("HOLDFAST_CLUSTER_STATE") or "/var/lib/holdfast-cluster"
    return Paths(
        state=Path(state).absolute(),
        cache=Path(cache).absolute() / "cluster",
        source=Path(__file__).resolve().parent.parent,
    )
