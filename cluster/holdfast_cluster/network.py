"""The cluster's wires: one bridge in the machine's namespace, one veth pair a node, routes to the nodes' pods.

Nodes have no default route: nothing in them can reach a registry, and a look-up of one fails at once instead of
after a time-out.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

from holdfast_cluster.config import BRIDGE, LINK_PREFIX, ClusterError, Paths, Plan, node_index
from holdfast_cluster.shell import run, succeeds

# Bridged frames must not pass the machine's own firewall; the rest is what kubelet sets on whatever machine it runs.
_TOUCHED = {
    "net/bridge/bridge-nf-call-iptables": "0",
    "vm/overcommit_memory": None,
    "vm/panic_on_oom": None,
    "kernel/panic": None,
    "kernel/panic_on_oops": None,
    "kernel/keys/root_maxkeys": None,
    "kernel/keys/root_maxbytes": None,
}
_INOTIFY = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 262144}
_SYS = Path("/proc/sys")


def host_routes() -> list[ipaddress.IPv4Network]:
    """Networks that the machine has routes to, those of our own bridge left out."""
    routes = json.loads(run(["ip", "-j", "-4", "route"]) or "[]")
    return [
        ipaddress.IPv4Network("0.0.0.0/0" if route["dst"] == "default" else route["dst"], strict=False)
        for route in routes
        if route.get("dev") != BRIDGE
    ]


def host_link(node: str) -> str:
    """The machine's end of a node's wire."""
    return LINK_PREFIX + node


def make_bridge(plan: Plan) -> None:
    """Makes the bridge and gives the machine its address on it.

    With a MAC of its own: else it has the lowest of its ports, a new one when that port's node loses power, and then nobody
    reaches the API server for seconds.
    """
    run(["ip", "link", "add", BRIDGE, "address", _mac(0), "type", "bridge"])
    run(["ip", "addr", "add", f"{plan.bridge_address}/24", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])


def connect_node(plan: Plan, node: str, pid: int, nodes: int) -> None:
    """Wires the network namespace of `pid` as `node`, and routes its pods from the machine and from it to others."""
    index, link = node_index(node), host_link(node)
    run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "address", _mac(index), "netns", str(pid)])
    run(["ip", "link", "set", link, "master", BRIDGE, "up"])
    inside = [
        "link set lo up",
        f"addr add {plan.node_address(index)}/24 dev eth0",
        "link set eth0 up",
        f"route add {plan.services} via {plan.bridge_address}",
    ]
    inside += [
        f"route add {plan.pod_subnet(other)} via {plan.node_address(other)}" for other in range(1, nodes + 1) if other != index
    ]
    run(["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"], stdin="\n".join(inside) + "\n")
    run(["ip", "route", "replace", plan.pod_subnet(index), "via", plan.node_address(index)])


def _mac(index: int) -> str:
    """Of a node's network card, 0 for the bridge. It outlives a power-off, as a real one does: a new one the others would
    not talk to until they have forgotten the old one, which takes them up to 45 s."""
    return f"02:68:66:00:00:{index:02x}"


def set_link(node: str, up: bool) -> None:
    """Plugs a node's wire in or out; the processes on the node notice nothing but silence."""
    run(["ip", "link", "set", host_link(node), "up" if up else "down"])


def remove_link(node: str) -> None:
    """Removes a node's wire if it is there."""
    succeeds(["ip", "link", "del", host_link(node)])


def link_up(node: str) -> bool:
    """Whether a node's wire is plugged in (administratively)."""
    try:
        links = json.loads(run(["ip", "-j", "link", "show", "dev", host_link(node)]))
    except ClusterError:
        return False
    return "UP" in links[0]["flags"]


def our_links() -> list[str]:
    """Names of the cluster's links on the machine."""
    names = [name for _, name in socket.if_nameindex()]
    return sorted(name for name in names if name == BRIDGE or name.startswith(LINK_PREFIX))


def save_and_set_sysctls(paths: Paths) -> None:
    """Notes the kernel settings that the cluster changes, for `restore_sysctls`, then changes them.

    A note that is there already is of a run that did not end well: it holds the true originals and is kept.
    """
    keys = [*_TOUCHED, *_INOTIFY]
    if not paths.sysctls.exists():
        values = {key: (_SYS / key).read_text().strip() for key in keys if (_SYS / key).exists()}
        paths.sysctls.parent.mkdir(parents=True, exist_ok=True)
        paths.sysctls.write_text(json.dumps(values), encoding="utf-8")
    for key, value in _TOUCHED.items():
        if value is not None and (_SYS / key).exists():
            (_SYS / key).write_text(value)
    for key, least in _INOTIFY.items():
        if int((_SYS / key).read_text()) < least:
            (_SYS / key).write_text(str(least))


def restore_sysctls(paths: Paths) -> None:
    """Puts back what `save_and_set_sysctls` noted."""
    if not paths.sysctls.exists():
        return
    for key, value in json.loads(paths.sysctls.read_text(encoding="utf-8")).items():
        if (_SYS / key).exists() and (_SYS / key).read_text().strip() != value:
            (_SYS / key).write_text(value)
    paths.sysctls.unlink()
