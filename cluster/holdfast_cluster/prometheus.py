"""Debian's Prometheus, started on demand, and beside it `discovery`, which tells it the pods to scrape."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

from holdfast_cluster.config import PORTS, ClusterError, Paths, Plan
from holdfast_cluster.daemon import Daemon

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def daemon(paths: Paths) -> Daemon:
    """The server's process."""
    return Daemon("prometheus", paths)


def _discovery(paths: Paths) -> Daemon:
    return Daemon("prometheus-discovery", paths)


def endpoint(plan: Plan) -> str:
    """Where its HTTP API is."""
    return f"http://{plan.bridge_address}:{PORTS['prometheus']}"


def _answers(plan: Plan) -> bool:
    """It listens a while before it takes queries: until its data is open, they get 503."""
    try:
        with _DIRECT.open(f"{endpoint(plan)}/-/ready", timeout=2):
            return True
    except OSError:
        return False


def start(paths: Paths, plan: Plan, config: Path | None) -> bool:
    """Starts it with a configuration in which `${PODS}` stands for the file of pods; False when it runs already.

    Either way it takes queries when this returns.
    """
    server = daemon(paths)
    if server.alive():
        server.wait_ready(lambda: _answers(plan), timeout=60)
        return False
    source = config or paths.source / "manifests" / "prometheus.yml"
    if not source.exists():
        raise ClusterError(f"no Prometheus configuration at {source}: give one with --config")
    folder = paths.state / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    pods, target = folder / "pods.json", folder / "prometheus.yml"
    target.write_text(source.read_text(encoding="utf-8").replace("${PODS}", str(pods)), encoding="utf-8")
    server.log.unlink(missing_ok=True)
    _discovery(paths).stop()
    _discovery(paths).start(
        [sys.executable, "-m", "holdfast_cluster.discovery", paths.pki / "prometheus.kubeconfig", pods],
        {"PYTHONPATH": str(paths.source)},
    )
    server.start(
        [
            "prometheus",
            f"--config.file={target}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={plan.bridge_address}:{PORTS['prometheus']}",
            "--storage.tsdb.retention.time=6h",
            "--log.level=warn",
        ]
    )
    server.wait_ready(lambda: _answers(plan), timeout=60)
    return True


def stop(paths: Paths) -> None:
    """Stops both; the samples stay until `down`."""
    _discovery(paths).stop()
    daemon(paths).stop()
