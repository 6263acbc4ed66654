"""The dashboard and the alerts: well formed, laid out, valid PromQL on documented metrics, and the checker of panels itself."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .conftest import CHART
from .live_panels import check_panels, panels
from .metrics_table import Metric, mentioned, table

DASHBOARD = json.loads((CHART / "dashboards" / "holdfast.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [(title, expr) for title, exprs in panels("team", "gpt").items() for expr in exprs]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_is_complete(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert "$namespace" in target["expr"] or "jobs" in target["expr"] or "reconcile" in target["expr"]


def test_titles_and_ids_are_unique() -> None:
    assert len({p["title"] for p in PANELS}) == len(PANELS)
    assert len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "a hole in the layout"


def test_variables() -> None:
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "namespace", "job"]


def test_dashboard_and_alerts_use_documented_metrics_only() -> None:
    known = table()
    assert known
    texts = dict(QUERIES) | {rule["alert"]: rule["expr"] for rule in ALERTS}
    texts |= {v["name"]: v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"}
    for where, text in texts.items():
        assert mentioned(text), where
        assert mentioned(text) <= known.keys(), where


def test_every_documented_metric_is_shown() -> None:
    shown = set().union(*(mentioned(expr) for _, expr in QUERIES))
    assert table().keys() - shown == set()


def test_alerts_say_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["description"]) > 60
        assert rule["alert"].startswith("Holdfast")


# --- with Prometheus' own programs


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on PATH: apt-get install prometheus")
    return path


def test_promql_is_valid(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": expr} for i, (_, expr) in enumerate(QUERIES)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (path, CHART / "files" / "alerts.yaml"):
        result = subprocess.run(
            [_tool("promtool"), "check", "rules", file], capture_output=True, text=True, timeout=30, check=False
        )
        assert result.returncode == 0, result.stderr


JOB = 'namespace="n",job_name="j"'
RECOVERIES = f'holdfast_recoveries_total{{{JOB},cause="Hang",level="memory"}}'
STORE = f'holdfast_store_up{{{JOB},level="pvc",pod="a"}}'
TAKEN = f'holdfast_snapshots_total{{{JOB},rank="0"}}'
SKIPPED = f'holdfast_snapshots_skipped_total{{{JOB},rank="0",reason="no_slot"}}'
FAILED, RECOVERING = 'holdfast_jobs{phase="Failed"}', 'holdfast_jobs{phase="Recovering"}'
ERRORS = "holdfast_reconcile_errors_total"
FAULTS = f"holdfast_job_protected_faults{{{JOB}}}"
UNREPLICATED = f'holdfast_replications_total{{{JOB},result="failed"}}'

HEALTHY = {  # short troubles, just before and at the time of the look, are health too
    ERRORS: "3x100",
    FAILED: "0x100",
    RECOVERING: "0x77 1x4 0x17",
    RECOVERIES: "7x100",
    STORE: "1x77 0x3 1x18",
    TAKEN: "0+8x100",
    SKIPPED: "0+1x100",
    FAULTS: "1x76 0x3 1x20",
    UNREPLICATED: "0x76 1x24",
}
FIRING = {  # alert: what differs from health, one sample a minute
    "HoldfastOperatorDown": {ERRORS: None},
    "HoldfastReconcileFailing": {ERRORS: "0+1x100"},
    "HoldfastJobFailed": {FAILED: "1x100"},
    "HoldfastJobRecoveringLong": {RECOVERING: "1x100"},
    "HoldfastJobRecoversOften": {RECOVERIES: "7x60 8 9 11 13x60"},
    "HoldfastStoreFailing": {STORE: "0x100"},
    "HoldfastJobUnprotected": {FAULTS: "1x20 0x80"},
    "HoldfastReplicationFailing": {UNREPLICATED: "0+1x100"},
    "HoldfastSnapshotsSkipped": {SKIPPED: "0+8x100", TAKEN: "0+2x100"},
}


def _case(series: dict[str, str | None], alert: str, firing: bool) -> dict[str, Any]:
    """A test of promtool: whether the alert fires 80 minutes after the series begin."""
    expr = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    expected = {"expr": expr, "eval_time": "80m", "exp_samples": [{"labels": "{}", "value": 1}] if firing else []}
    inputs = [{"series": name, "values": values} for name, values in series.items() if values]
    return {"interval": "1m", "input_series": inputs, "promql_expr_test": [expected]}


def test_alerts_fire_and_keep_silent(tmp_path: Path) -> None:
    assert {rule["alert"] for rule in ALERTS} == FIRING.keys()
    cases = [_case({**HEALTHY, **different}, alert, True) for alert, different in FIRING.items()]
    cases += [_case({**HEALTHY}, alert, False) for alert in FIRING]
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(CHART / "files" / "alerts.yaml")], "tests": cases}))
    result = subprocess.run([_tool("promtool"), "test", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# --- the checker, against a real Prometheus


class Exporter:
    """Serves every documented metric (but `hidden`) for one job, over real HTTP, and moves on with each scrape."""

    def __init__(self) -> None:
        self.hidden = ""
        self._scrapes = 0
        self._registry = CollectorRegistry()
        self._metrics = {m.name: self._make(m) for m in table().values()}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _make(self, metric: Metric) -> Any:
        kind = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}[metric.type]
        made = kind(metric.name, "documented", metric.labels, registry=self._registry)
        known = {"namespace": "team", "job_name": "gpt"}
        return made.labels(**{name: known.get(name, "0") for name in metric.labels}) if metric.labels else made

    def text(self) -> bytes:
        self._scrapes += 1
        for metric in self._metrics.values():
            if isinstance(metric, Histogram):
                metric.observe(0.1)
            elif isinstance(metric, Counter):
                metric.inc()
            else:
                metric.set(self._scrapes)
        lines = generate_latest(self._registry).decode().splitlines(keepends=True)
        return "".join(line for line in lines if not self.hidden or self.hidden not in line).encode()

    def _handler(exporter) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.text()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with closing(Exporter()) as running:
        yield running


@pytest.fixture
def prometheus(tmp_path: Path, exporter: Exporter) -> Iterator[str]:
    config = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{exporter.port}"], "labels": {"pod": "gpt-0"}}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [
        _tool("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(argv)
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _ready(url), "Prometheus to be ready")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _until(condition: Any, what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_check_panels_names_the_empty_panels_and_no_other(exporter: Exporter, prometheus: str) -> None:
    exporter.hidden = "holdfast_store_up"
    _until(lambda: len(check_panels(prometheus, "team", "gpt", minutes=1)) <= 1, "the other panels to have data")
    assert check_panels(prometheus, "team", "gpt", minutes=1) == ["Store health"]
    assert "Step" in check_panels(prometheus, "team", "another-job", minutes=1)
    exporter.hidden = ""
    _until(lambda: not check_panels(prometheus, "team", "gpt", minutes=1), "every panel to have data")
