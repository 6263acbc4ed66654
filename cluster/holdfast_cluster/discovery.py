"""Tells Prometheus which pods to scrape: Debian builds it without Kubernetes discovery, so a file does the telling.

Runs as a process beside it (`prometheus` starts and stops both) and rewrites the file when the pods change.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast_cluster.api import Api
from holdfast_cluster.config import ClusterError

PERIOD_SECONDS = 2.0
_PREFIX = "prometheus.io/"
_RUNNING = "/api/v1/pods?resourceVersion=0&fieldSelector=status.phase%3DRunning"


def target(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pod's entry in Prometheus's target file; None for a pod that offers no metrics or has no address yet."""
    meta, address = pod["metadata"], pod["status"].get("podIP")
    notes = meta.get("annotations", {})
    scrape = notes.get(_PREFIX + "scrape")
    port = notes.get(_PREFIX + "port") if scrape == "true" else None
    port = port or _metrics_port(pod["spec"])
    if scrape == "false" or not port or not address:
        return None
    labels = {re.sub(r"\W", "_", name): value for name, value in meta.get("labels", {}).items()}
    labels.update(namespace=meta["namespace"], pod=meta["name"], node=pod["spec"].get("nodeName", ""))
    for note, label in (("path", "__metrics_path__"), ("scheme", "__scheme__")):
        if _PREFIX + note in notes:
            labels[label] = notes[_PREFIX + note]
    return {"targets": [f"{address}:{port}"], "labels": labels}


def _metrics_port(spec: Mapping[str, Any]) -> int | None:
    """The container port called `metrics`; native sidecars stand among the init containers."""
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        for port in container.get("ports", []):
            if port.get("name") == "metrics":
                return int(port["containerPort"])
    return None


def targets(pods: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All entries, in a stable order."""
    found = [entry for pod in pods if (entry := target(pod)) is not None]
    return sorted(found, key=lambda entry: str(entry["targets"]))


def main(kubeconfig: str, out: str) -> None:
    """Follows the pods for ever. While the API server is away the last list stands."""
    api, file, last = Api(Path(kubeconfig)), Path(out), ""
    pause = threading.Event()
    while True:
        try:
            text = json.dumps(targets(api.get(_RUNNING)["items"]), indent=1)
        except ClusterError as error:
            print(error, flush=True)
            text = last
        if text != last:
            part = file.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            part.replace(file)
            last = text
        pause.wait(PERIOD_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
