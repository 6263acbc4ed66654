"""Every panel's queries, as Grafana would send them, and whether a real Prometheus has data for them.

Standard library only: the end-to-end test on the cluster uses `check_panels` after a recovery.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[2] / "charts" / "holdfast" / "dashboards" / "holdfast.json"
_TIMEOUT = 10.0  # seconds for one query


def panels(namespace: str, job: str, interval: str = "30s") -> dict[str, list[str]]:
    """PromQL of every panel by its title, with the dashboard's variables put in. `interval`: four scrapes or more."""
    dashboard = json.loads(DASHBOARD.read_text())
    values = {"$namespace": namespace, "$job": job, "$__rate_interval": interval}
    return {
        panel["title"]: [_substitute(target["expr"], values) for target in panel["targets"]]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }


def check_panels(prometheus_url: str, namespace: str, job: str, *, minutes: float = 15.0) -> list[str]:
    """Titles of the panels with a query that had no number at all in the last minutes; empty: all is well.

    Raises OSError when Prometheus can't be reached, and AssertionError with its message when it refuses a query.
    """
    end = time.time()
    found = panels(namespace, job)
    return [title for title, exprs in found.items() if not all(_has_data(prometheus_url, e, end, minutes) for e in exprs)]


def _substitute(expr: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"unknown variable in {expr}"
    return expr


def _has_data(url: str, expr: str, end: float, minutes: float) -> bool:
    result = _query_range(url, {"query": expr, "start": end - minutes * 60, "end": end, "step": 2})
    return any(not math.isnan(float(value)) for series in result for _, value in series["values"])


def _query_range(url: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    data = urllib.parse.urlencode(arguments).encode()
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query_range", data, timeout=_TIMEOUT) as reply:
            body = json.load(reply)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"Prometheus refused {arguments['query']}: {error.read().decode()}") from error
    result: list[dict[str, Any]] = body["data"]["result"]
    return result
