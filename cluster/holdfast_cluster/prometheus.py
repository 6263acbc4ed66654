"""Debian's Prometheus, started on demand; it finds the pods to scrape through the API server, as in production."""

from __future__ import annotations

from pathlib import Path

from holdfast_cluster.config import PORTS, ClusterError, Paths, Plan
from holdfast_cluster.daemon import Daemon
from holdfast_cluster.s3 import listening


def daemon(paths: Paths) -> Daemon:
    return Daemon("prometheus", paths)


def endpoint(plan: Plan) -> str:
    return f"http://{plan.bridge_address}:{PORTS['prometheus']}"


def start(paths: Paths, plan: Plan, config: Path | None) -> bool:
    """Starts it with a configuration in which `${KUBECONFIG}` stands for its own kubeconfig; False when it runs."""
    server = daemon(paths)
    if server.alive():
        return False
    source = config or paths.source / "manifests" / "prometheus.yml"
    if not source.exists():
        raise ClusterError(f"no Prometheus configuration at {source}: give one with --config")
    text = source.read_text(encoding="utf-8").replace("${KUBECONFIG}", str(paths.pki / "prometheus.kubeconfig"))
    folder = paths.state / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "prometheus.yml"
    target.write_text(text, encoding="utf-8")
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
    server.wait_ready(lambda: listening(plan.bridge_address, PORTS["prometheus"]), timeout=30)
    return True
