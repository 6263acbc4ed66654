"""The guides against what they describe: links, names, examples, generated pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from holdfast_core.planner import reasons

from .conftest import CHART, ROOT
from .metrics_table import Metric, table

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), CHART / "README.md"])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def test_api_page_is_fresh() -> None:
    result = subprocess.run(
        [sys.executable, "docs/generate_api.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of headings."""
    titles = [line.lstrip("#").strip() for line in page.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_reason_is_explained() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    names = [value for name, value in vars(reasons).items() if name.isupper()]
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_alert_is_explained() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    assert [r["alert"] for g in groups for r in g["rules"] if f"`{r['alert']}`" not in text] == []


def test_example_job_fits_the_crd() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "trainingjobs.holdfast.dev.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    blocks = _FENCE.findall((ROOT / "docs" / "getting-started.md").read_text())
    jobs = [yaml.safe_load(text) for language, text in blocks if language == "yaml"]
    assert jobs
    for job in jobs:
        jsonschema.validate(job, closed(schema))


def closed(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields instead of pruning them, in JSON Schema's words."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        result.pop("type", None)
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "kind" in schema["properties"]
        if not open_ended and "additionalProperties" not in schema:
            result["additionalProperties"] = False
    return result


def registered(metrics: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of the metrics of a registry by the name that is exported."""
    found = {}
    for collector in metrics._collector_to_names:
        describe = getattr(collector, "describe", collector.collect)
        for family in describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            found[name] = (family.type, tuple(labels))
    return found


def documented(exporter: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {m.name: (m.type, m.labels) for m in table().values() if m.exporter == exporter}


def test_table_lists_what_the_sidecar_exports() -> None:
    from holdfast_sidecar import metrics

    made = metrics.Metrics("team", "gpt")
    made.registry.register(metrics.Gauges())
    assert registered(made.registry) == documented("sidecar")


def test_table_lists_what_the_operator_exports() -> None:
    from holdfast_operator import metrics

    assert registered(metrics.Metrics().registry) == documented("operator")


def test_metric_names_follow_prometheus_rules() -> None:
    for metric in table().values():
        check_name(metric)


def check_name(metric: Metric) -> None:
    assert metric.name.endswith("_total") == (metric.type == "counter"), metric
    assert metric.exporter in ("sidecar", "operator")
    if metric.type == "histogram":
        assert metric.name.endswith("_seconds"), metric
