"""The command line: parses, takes the lock, calls, and prints one line for a human."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from holdfast_cluster import build, cleanup, cluster, images, network, node, packages, preflight, prometheus, s3, storage
from holdfast_cluster.api import Api
from holdfast_cluster.config import ClusterError, Paths, paths_from_environment
from holdfast_cluster.progress import Reporter
from holdfast_cluster.shell import uninterrupted, wait_until

LOCK_SECONDS = 1800
_EXISTING = {"kubeconfig", "status", "kubectl", "helm"}
_PASS_THROUGH = {"kubectl", "helm", "exec-node"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 with a line on stderr otherwise, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    packages.extend_path()
    try:
        options = parse(words)
        paths = paths_from_environment()
        if os.environ.get("CLUSTER") == "existing":
            return _existing(options)
        return COMMANDS[options.command](options, paths)
    except ClusterError as error:
        print("\n".join(f"cluster: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("cluster: interrupted", file=sys.stderr)
        return 130


def parse(words: list[str]) -> argparse.Namespace:
    """Options of one command. What follows `kubectl`, `helm` or `exec-node NODE` is passed on as it is."""
    if words[:1] and words[0] in _PASS_THROUGH:
        if words[0] == "exec-node" and len(words) < 3:
            raise ClusterError("usage: cluster exec-node NODE COMMAND...")
        named = 2 if words[0] == "exec-node" else 1
        return argparse.Namespace(command=words[0], node="".join(words[1:named]), arguments=words[named:])
    return _parser().parse_args(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description="A real multi-node Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring the cluster up (the first time builds it: 8 to 15 minutes)")
    up.add_argument("--nodes", type=_count, default=3)
    for name, text in _PLAIN.items():
        commands.add_parser(name, help=text)
    status = commands.add_parser("status", help="what runs")
    status.add_argument("--json", action="store_true")
    load = commands.add_parser("load-image", help="load a built image, or a docker-archive tar, into every node")
    load.add_argument("image")
    _add_build(commands.add_parser("build-image", help="build an image from a Dockerfile on the local base"))
    for name, text in _NODE.items():
        commands.add_parser(name, help=text).add_argument("node")
    s3_parser = commands.add_parser("s3", help="the S3 server: endpoint and access print how to reach it")
    s3_parser.add_argument("action", choices=("start", "stop", "status", "endpoint", "access"))
    store = commands.add_parser("storage", help="the shared file system: make it fail, fill it, or claim a volume")
    store.add_argument("action", choices=("on", "off", "full", "free", "status", "claim"))
    store.add_argument("claim", nargs="?", metavar="NAMESPACE/NAME")
    watch = commands.add_parser("prometheus", help="Debian's Prometheus, scraping annotated pods")
    watch.add_argument("action", choices=("start", "stop", "endpoint"))
    watch.add_argument("--config", type=Path)
    for name in sorted(_PASS_THROUGH):
        commands.add_parser(name, help=f"{name} [NODE] ARGUMENTS..." if name == "exec-node" else f"{name} on it")
    return parser


_PLAIN = {
    "down": "remove the cluster and everything it put on the machine",
    "prepare": "only the set-up work: packages, builds, base image",
    "kubeconfig": "print the kubeconfig's path",
    "leftovers": "list what of a cluster is on the machine; exit 1 if anything is",
}
_NODE = {
    "power-off": "cut a node's power: link first, then every process at once",
    "power-on": "boot it again with the disk it had",
    "partition": "unplug a node's network; its processes live on",
    "heal": "plug it in again",
}


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("context", nargs="?", type=Path, default=Path())
    parser.add_argument("--tag", required=True)
    parser.add_argument("--target")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--load", action="store_true", help="load it into the nodes afterwards")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError("the number of nodes is 1 to 16")
    return int(text)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """One `up` or `down` (or one build) on the machine at a time; the kernel drops the lock with its process."""
    place = Path("/run/lock") if Path("/run/lock").is_dir() else Path("/tmp")
    with (place / f"holdfast-cluster-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"cluster: another `cluster` command holds the {name} lock; waiting", file=sys.stderr)
            wait_until(lambda: _try_lock(lock.fileno()), timeout=LOCK_SECONDS, what=f"the {name} lock", every=0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _up(options: argparse.Namespace, paths: Paths) -> int:
    reporter = Reporter()
    _require_root()
    with _exclusive("machine"):
        fresh = cluster.up(paths, options.nodes, reporter)
    took = f"up in {reporter.elapsed():.1f} s" if fresh else "up already, nothing to do"
    off = cluster.powered_off(paths)
    took += f" ({', '.join(off)} powered off)" if off else ""
    print(f"the cluster is {took}; export KUBECONFIG={paths.kubeconfig}")
    return 0


def _down(options: argparse.Namespace, paths: Paths) -> int:
    reporter = Reporter()
    _require_root()
    with _exclusive("machine"), uninterrupted():
        was_there = bool(cleanup.leftovers(paths)) or paths.state.exists()
        cleanup.remove_everything(paths)
    print(f"the cluster is gone ({reporter.elapsed():.1f} s)" if was_there else "there was no cluster")
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("not root: namespaces and mounts need it; run the same command with sudo")


def _prepare(options: argparse.Namespace, paths: Paths) -> int:
    reporter = Reporter()
    found = [line for line in preflight.problems(preflight.observe(paths)) if not line.startswith("port ")]
    if found:
        raise ClusterError("\n".join(found))
    with _exclusive("prepare"):
        cluster.prepare(paths, reporter)
    print(f"prepared in {reporter.elapsed():.1f} s")
    return 0


def _status(options: argparse.Namespace, paths: Paths) -> int:
    state = cluster.status(paths)
    if options.json:
        print(json.dumps(state, indent=1))
        return 0
    for name, alive in state["control_plane"].items():
        print(f"{name:25} {'running' if alive else 'DEAD'}")
    for name, view in state["nodes"].items():
        power = "on" if view["power"] else "OFF"
        link = "in" if view["link"] else "OUT"
        print(f"{name:25} {'Ready' if view['ready'] else 'NotReady':9} power {power}  cable {link}  {view['address']}")
    print(f"{'shared storage':25} {state['storage']}")
    for name in ("s3", "prometheus"):
        print(f"{name:25} {state[name]['endpoint'] if state[name]['running'] else 'stopped'}")
    print(f"{'kubeconfig':25} {state['kubeconfig']}")
    return 0


def _leftovers(options: argparse.Namespace, paths: Paths) -> int:
    found = cleanup.leftovers(paths)
    print("\n".join(found) or "nothing")
    return 1 if found else 0


def _kubeconfig(options: argparse.Namespace, paths: Paths) -> int:
    cluster.load(paths)
    print(paths.kubeconfig)
    return 0


def _load_image(options: argparse.Namespace, paths: Paths) -> int:
    for name, did in cluster.load_image(paths, options.image).items():
        print(f"{name}: {did}")
    return 0


def _build_image(options: argparse.Namespace, paths: Paths) -> int:
    reporter = Reporter()
    pairs = [word.partition("=") for word in options.build_arg]
    if any(not equals for _, equals, _ in pairs):
        raise ClusterError("--build-arg takes NAME=VALUE")
    context = options.context.resolve()
    request = images.BuildRequest(
        tag=options.tag,
        context=context,
        dockerfile=(options.file or context / "Dockerfile").resolve(),
        target=options.target,
        arguments={name: value for name, _, value in pairs},
    )
    with _exclusive("build"):
        did = images.build_image(paths, request)
    print(f"{images.normalise(options.tag)}: {did} in {reporter.elapsed():.1f} s")
    if options.load:
        options.image = options.tag
        return _load_image(options, paths)
    return 0


def _node_action(act: Callable[[Paths, str], None]) -> Callable[[argparse.Namespace, Paths], int]:
    def command(options: argparse.Namespace, paths: Paths) -> int:
        with _exclusive("machine"):
            act(paths, cluster.known_node(cluster.load(paths), options.node))
        print(f"{options.node}: {options.command} done")
        return 0

    return command


def _exec_node(options: argparse.Namespace, paths: Paths) -> int:
    return node.exec_in(paths, options.node, options.arguments)


def _s3(options: argparse.Namespace, paths: Paths) -> int:
    record = s3.access(paths)
    if options.action == "access":
        print(json.dumps(record, indent=1))
    elif options.action == "endpoint":
        print(record["endpoint"])
    elif options.action == "status":
        print("running" if s3.daemon(paths).alive() else "stopped")
    else:
        changed = s3.start(paths) if options.action == "start" else s3.stop(paths)
        word = "started" if options.action == "start" else "stopped"
        print(f"s3 {word}" if changed else f"s3 was {word} already")
    return 0


def _storage(options: argparse.Namespace, paths: Paths) -> int:
    cluster.load(paths)
    if options.action == "claim":
        namespace, _, name = (options.claim or "").partition("/")
        if not namespace or not name:
            raise ClusterError("usage: cluster storage claim NAMESPACE/NAME")
        volume = storage.claim(paths, Api(paths.kubeconfig), namespace, name)
        print(f"claim {name} in {namespace} is bound to volume {volume}")
        return 0
    if options.action != "status":
        storage.switch(paths, options.action)
    print(f"shared storage: {storage.state(paths)}")
    return 0


def _prometheus(options: argparse.Namespace, paths: Paths) -> int:
    plan = cluster.load(paths).plan
    if options.action == "start":
        prometheus.start(paths, plan, options.config)
    elif options.action == "stop":
        prometheus.stop(paths)
        print("prometheus stopped")
        return 0
    print(prometheus.endpoint(plan))
    return 0


def _tool(name: str, place: Callable[[Paths], Path]) -> Callable[[argparse.Namespace, Paths], int]:
    def command(options: argparse.Namespace, paths: Paths) -> int:
        cluster.load(paths)
        os.environ["KUBECONFIG"] = str(paths.kubeconfig)
        os.execv(place(paths), [name, *options.arguments])

    return command


def _existing(options: argparse.Namespace) -> int:
    """CLUSTER=existing: the user's own cluster through the current kube context; nothing here is started."""
    if options.command not in _EXISTING:
        raise ClusterError(f"`{options.command}` does not apply to CLUSTER=existing: it acts on the local cluster only")
    if options.command == "kubeconfig":
        print(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        return 0
    tool = "helm" if options.command == "helm" else "kubectl"
    program = shutil.which(tool)
    if program is None:
        raise ClusterError(f"{tool} is not on PATH: install it to use CLUSTER=existing")
    as_json = ["-o", "json"] if getattr(options, "json", False) else ["-o", "wide"]
    arguments = ["get", "nodes", *as_json] if options.command == "status" else options.arguments
    os.execv(program, [tool, *arguments])


COMMANDS: dict[str, Callable[[argparse.Namespace, Paths], int]] = {
    "up": _up,
    "down": _down,
    "prepare": _prepare,
    "status": _status,
    "leftovers": _leftovers,
    "kubeconfig": _kubeconfig,
    "load-image": _load_image,
    "build-image": _build_image,
    "power-off": _node_action(node.power_off),
    "power-on": _node_action(cluster.power_on),
    "partition": _node_action(lambda paths, name: network.set_link(name, up=False)),
    "heal": _node_action(lambda paths, name: network.set_link(name, up=True)),
    "exec-node": _exec_node,
    "s3": _s3,
    "storage": _storage,
    "prometheus": _prometheus,
    "kubectl": _tool("kubectl", lambda paths: build.component(paths, "kubectl")),
    "helm": _tool("helm", lambda paths: build.binary(paths, "helm")),
}
