"""Everything one wants to see when something did not recover, as text files and as a short print."""

from __future__ import annotations

from pathlib import Path

from .errors import DemoError
from .faults import Scene
from .kube import ApiError


def dump(scene: Scene, folder: Path) -> None:
    """Write the job, its pods, events and all logs into a folder. Never raises: it runs when things are broken."""
    folder.mkdir(parents=True, exist_ok=True)
    job = scene.job
    namespace = ("-n", job.namespace)
    commands = {
        "job.yaml": ("get", "tj", job.name, "-o", "yaml", *namespace),
        "describe.txt": ("describe", "tj", job.name, *namespace),
        "pods.txt": ("get", "pods", "-o", "wide", *namespace),
        "pods.yaml": ("get", "pods", "-o", "yaml", *namespace),
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp", *namespace),
        "nodes.txt": ("get", "nodes", "-o", "wide"),
    }
    for name, words in commands.items():
        (folder / name).write_text(_kubectl(scene, *words), encoding="utf-8")
    try:
        _logs(scene, folder)
    except (ApiError, DemoError) as error:
        (folder / "logs-missing.txt").write_text(str(error), encoding="utf-8")


def _logs(scene: Scene, folder: Path) -> None:
    pods = [*scene.job.pods(), *scene.cluster.kube.list("Pod", scene.release.namespace)]
    for pod in pods:
        status = pod["status"]
        for found in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            meta = pod["metadata"]
            text = scene.cluster.kube.logs(meta["namespace"], meta["name"], found["name"])
            (folder / f"{meta['name']}.{found['name']}.log").write_text(text, encoding="utf-8")
            if found.get("restartCount"):
                text = scene.cluster.kube.logs(meta["namespace"], meta["name"], found["name"], previous=True)
                (folder / f"{meta['name']}.{found['name']}.previous.log").write_text(text, encoding="utf-8")
    lines = "\n".join(f"{line.time:.3f} {line.pod} {line.text}" for line in scene.job.log.lines)
    (folder / "rank-0-followed.log").write_text(lines, encoding="utf-8")


def summary(scene: Scene) -> str:
    """`kubectl get` and `describe` of the job, for the terminal."""
    namespace = ("-n", scene.job.namespace)
    parts = [
        _kubectl(scene, "get", "tj,pods", "-o", "wide", *namespace),
        _kubectl(scene, "describe", "tj", scene.job.name, *namespace),
    ]
    return "\n".join(parts)


def _kubectl(scene: Scene, *words: str) -> str:
    try:
        return scene.cluster.kubectl(*words, seconds=30)
    except DemoError as error:
        return f"[{error}]\n"
