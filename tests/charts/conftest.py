"""Finds Helm and renders the chart; the tests around it need no cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "holdfast"
KUBERNETES = "1.29.0"  # the oldest that the chart allows; a Helm built from source assumes 1.20 when offline

Document = dict[str, Any]
Render = Callable[..., list[Document]]


def _find_helm() -> str | None:
    """$HELM, the one on PATH, or the newest that `cluster/cluster prepare` built into the cache."""
    cache = Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")
    built = sorted(cache.glob("cluster/go/helm-*/helm"), key=lambda path: path.stat().st_mtime)
    found = os.environ.get("HELM") or shutil.which("helm") or (str(built[-1]) if built else None)
    return found if found and os.access(found, os.X_OK) else None


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    program = _find_helm()
    if program is None:
        pytest.skip("no helm: put it on PATH, set HELM, or run `cluster/cluster prepare`")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """Renders the chart with `--set` words; monitors are possible as in a cluster with the Prometheus operator."""

    def run(*settings: str) -> list[Document]:
        words = [word for setting in settings for word in ("--set", setting)]
        result = helm(
            "template", "holdfast", str(CHART), "--namespace", "holdfast-system",
            "--kube-version", KUBERNETES, "--api-versions", "monitoring.coreos.com/v1", *words,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return [document for document in yaml.safe_load_all(result.stdout) if document]

    return run


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]
