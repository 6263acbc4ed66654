"""Puts the parts together: `prepare`, `up`, `down` and `status` of one local cluster."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_cluster import (
    build,
    cleanup,
    controlplane,
    images,
    network,
    node,
    packages,
    pki,
    preflight,
    prometheus,
    s3,
    storage,
)
from holdfast_cluster.api import Api
from holdfast_cluster.config import ClusterError, Paths, Plan, choose_plan, node_index, node_names
from holdfast_cluster.daemon import Daemon
from holdfast_cluster.progress import Part, Reporter, run_parts
from holdfast_cluster.shell import resume, tail, uninterrupted, wait_until

READY_SECONDS = 120
ANSWER_SECONDS = 30


@dataclass(frozen=True)
class Record:
    """What `up` decided, kept in the state folder for the other commands."""

    plan: Plan
    nodes: list[str]


def load(paths: Paths) -> Record:
    """The running cluster's record; raises ClusterError when there is none."""
    try:
        data = json.loads(paths.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ClusterError("the cluster is not up: run `cluster up`") from None
    return Record(Plan(int(data["second_octet"])), [str(name) for name in data["nodes"]])


def known_node(record: Record, name: str) -> str:
    """The name itself if the cluster has such a node, else ClusterError."""
    node_index(name)
    if name not in record.nodes:
        raise ClusterError(f"there is no {name}: the cluster has {', '.join(record.nodes)}")
    return name


def prepare(paths: Paths, reporter: Reporter) -> dict[str, float]:
    """All set-up work, side by side and cached by content; {part: seconds}."""
    parts = {
        "packages": Part(lambda: packages.install(paths)),
        "go": Part(lambda: build.install_go(paths), needs=("packages",)),
        "base root": Part(lambda: images.make_rootfs(paths), needs=("packages",)),
        "base image": Part(lambda: images.make_base(paths), needs=("base root",)),
        "build kubernetes": Part(lambda: build.build(paths, "kube"), needs=("go",)),
        "build s3": Part(lambda: build.build(paths, "s3"), needs=("go", "base image")),
        "build helm": Part(lambda: build.build(paths, "helm"), needs=("go", "build s3")),
        "build pause": Part(lambda: build.build(paths, "pause"), needs=("go",)),
    }
    if preflight.is_cold(paths):
        reporter.say("prepare", "first time on this machine: 8 to 15 minutes on two cores; later runs take seconds")
    return run_parts(parts, reporter)


def up(paths: Paths, count: int, reporter: Reporter) -> bool:
    """Brings up a cluster with `count` nodes; False when that one is up already. Cleans up after a failure."""
    if is_healthy(paths):
        _same_size(load(paths), count)
        return False
    if cleanup.leftovers(paths):
        reporter.say("clean-up", "removing what an earlier cluster left")
        cleanup.remove_everything(paths)
    preflight.check(paths)
    prepare(paths, reporter)
    try:
        _bring_up(paths, count, reporter)
    except BaseException as error:
        kept = _keep_logs(paths)
        _clean_up(paths, reporter)
        if isinstance(error, ClusterError):
            raise ClusterError(f"{error}\n{kept}") from None
        raise
    return True


def _same_size(record: Record, count: int) -> None:
    if len(record.nodes) != count:
        raise ClusterError(f"a cluster with {len(record.nodes)} nodes is up: `cluster down` it first")


def _clean_up(paths: Paths, reporter: Reporter) -> None:
    reporter.say("clean-up", "the start failed; removing what was started")
    resume()
    with uninterrupted():
        cleanup.remove_everything(paths)


def _bring_up(paths: Paths, count: int, reporter: Reporter) -> None:
    plan, nodes = choose_plan(network.host_routes()), node_names(count)
    network.save_and_set_sysctls(paths)
    network.make_bridge(plan)
    pki.make(paths, plan, nodes)
    kind = storage.mount(paths)
    s3.configure(paths, plan)
    s3.start(paths)
    reporter.say("storage", f"shared {kind} and S3 at {plan.s3_url}")
    for name in nodes:
        node.power_on(paths, plan, name, len(nodes))
    parts = {
        "control plane": Part(lambda: _control_plane(paths, plan)),
        "images": Part(lambda: _own_images(paths, nodes)),
    }
    run_parts(parts, reporter)
    _wait_nodes(paths, Api(paths.kubeconfig), nodes)
    record = {"second_octet": plan.second_octet, "nodes": nodes, "storage": kind, "started": time.time()}
    paths.record.write_text(json.dumps(record), encoding="utf-8")
    reporter.say("nodes", f"{', '.join(nodes)} are Ready")


def _control_plane(paths: Paths, plan: Plan) -> str:
    api = controlplane.start(paths, plan)
    controlplane.apply_basics(api, plan)
    api.apply(storage.volume_manifest(storage.DEFAULT_VOLUME))
    return f"ready at {plan.api_url}"


def _own_images(paths: Paths, nodes: list[str]) -> str:
    for archive in (images.pause_archive(paths), images.base_archive(paths)):
        _load(paths, nodes, archive)
    return f"pause and base loaded into {len(nodes)} nodes"


def _load(paths: Paths, nodes: list[str], archive: Path) -> dict[str, str]:
    for name in nodes:
        wait_until(
            lambda name=name: node.container_runtime_ready(paths, name),  # type: ignore[misc]
            timeout=30,
            what=f"containerd on {name} does not answer; end of its log:\n{tail(node.logs(paths, name)[1])}",
        )
    return images.load_archive(paths, archive, node.running_nodes(paths, nodes))


def _wait_nodes(paths: Paths, api: Api, nodes: list[str]) -> None:
    def all_ready() -> bool:
        controlplane.check_alive(paths)
        ready = api.nodes()
        return all(ready.get(name) for name in nodes) and controlplane.default_account_made(api)

    try:
        wait_until(all_ready, timeout=READY_SECONDS, what="nodes are not Ready", every=0.3)
    except ClusterError as error:
        late = _late(api, nodes)
        ends = "\n".join(f"end of {log}:\n{tail(log)}" for name in late[:1] for log in node.logs(paths, name)[:2])
        raise ClusterError(f"{error} ({', '.join(late)})\n{ends}") from None


def _late(api: Api, nodes: list[str]) -> list[str]:
    try:
        ready = api.nodes()
    except ClusterError:
        return nodes
    return [name for name in nodes if not ready.get(name)]


def _keep_logs(paths: Paths) -> str:
    """Moves the logs of a failed start to the cache, where the clean-up leaves them."""
    kept = paths.cache / "logs" / "last-failed-up"
    if not paths.logs.is_dir():
        return "nothing was started"
    kept.mkdir(parents=True, exist_ok=True)
    for log in paths.logs.iterdir():
        (kept / log.name).write_bytes(log.read_bytes())
    return f"all logs: {kept}"


def is_healthy(paths: Paths) -> bool:
    """Whether the recorded cluster's control plane runs and answers. Nodes may be off: that is their user's doing."""
    try:
        load(paths)
        return _answers(paths, Api(paths.kubeconfig))
    except ClusterError:
        return False


def _answers(paths: Paths, api: Api) -> bool:
    """While all of it lives it is given time: a busy machine's late answer is no reason to take a running cluster away."""
    end = time.monotonic() + ANSWER_SECONDS
    while all(Daemon(name, paths).alive() for name in controlplane.NAMES):
        if api.ready():
            return True
        if time.monotonic() >= end:
            break
        time.sleep(0.3)
    return False


def powered_off(paths: Paths) -> list[str]:
    """Names of the cluster's nodes that are off."""
    names = load(paths).nodes
    return sorted(set(names) - node.running_nodes(paths, names).keys())


def load_image(paths: Paths, name: str) -> dict[str, str]:
    """Loads a tar, or the newest build of a tag, into every node that has power."""
    record = load(paths)
    archive = Path(name)
    if not archive.is_file():
        archive = images.image_archive(paths, images.normalise(name))
        if not archive.exists():
            raise ClusterError(f"{name} is neither a tar nor the tag of a built image: `cluster build-image` it first")
    running = list(node.running_nodes(paths, record.nodes))
    off = {name: "off, skipped" for name in record.nodes if name not in running}
    return _load(paths, running, archive.resolve()) | off


def power_on(paths: Paths, name: str) -> None:
    """Boots a node that was powered off."""
    record = load(paths)
    node.power_on(paths, record.plan, known_node(record, name), len(record.nodes))


def status(paths: Paths) -> dict[str, Any]:
    """What runs, as the machine and the API server see it."""
    record = load(paths)
    api = Api(paths.kubeconfig)
    try:
        ready = api.nodes()
    except ClusterError:
        ready = {}
    return {
        "control_plane": {name: Daemon(name, paths).alive() for name in controlplane.NAMES},
        "nodes": {
            name: {
                "power": node.init_pid(paths, name) is not None,
                "link": network.link_up(name),
                "ready": ready.get(name, False),
                "address": record.plan.node_address(node_index(name)),
            }
            for name in record.nodes
        },
        "api": record.plan.api_url,
        "kubeconfig": str(paths.kubeconfig),
        "s3": {"running": s3.daemon(paths).alive(), "endpoint": record.plan.s3_url, "file": str(paths.s3_file)},
        "storage": storage.state(paths),
        "prometheus": {"running": prometheus.daemon(paths).alive(), "endpoint": prometheus.endpoint(record.plan)},
    }
