"""The Grafana dashboard, made of the table in `panels.py`; `sync.py` writes it to holdfast/dashboards/holdfast.json.

Kept as code because most of a dashboard's JSON is repetition, and a panel that forgets its unit, legend or description does not
show in a diff of it.
"""

from __future__ import annotations

from typing import Any

from panels import ROWS, Panel, Query

WIDTH = 24  # columns of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    return {
        "uid": "holdfast",
        "title": "Holdfast",
        "description": "Training jobs that Holdfast keeps alive: steps, levels, recoveries. Metrics: docs/metrics.md.",
        "tags": ["holdfast", "training"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}
    jobs = 'label_values(holdfast_job_step{namespace="$namespace"}, job_name)'
    return [
        source,
        _variable("namespace", "Namespace", "label_values(holdfast_job_step, namespace)"),
        {**_variable("job", "Job", jobs), "multi": True, "includeAll": True, "allValue": ".*"},
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # with the time range: ended jobs stay selectable where they have data
        "sort": 1,
        "hide": 0,
    }


def _panels() -> list[dict[str, Any]]:
    """All rows and panels, placed from left to right and top to bottom."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        made.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _grid(0, y, WIDTH, 1)})
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            made.append(_panel(panel, _grid(x, y, panel.width, panel.height)))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return [{"id": number, **panel} for number, panel in enumerate(made, start=1)]


def _grid(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [_target(query, chr(ord("A") + i)) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(query: Query, ref: str) -> dict[str, Any]:
    return {"refId": ref, "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend, "range": True}


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = panel.custom.get("steps", [{"color": "green", "value": None}])
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": {"lineWidth": 2, "showPoints": "never", "spanNulls": False, **panel.custom}}
    if "mappings" in panel.custom:
        options = {value: {"text": text, "color": color} for value, (text, color) in panel.custom["mappings"].items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "graphMode": "none",
            "textMode": "auto",
        }
    if panel.kind == "state-timeline":
        return {"showValue": "auto", "mergeValues": True, "legend": {"showLegend": False}, "tooltip": {"mode": "single"}}
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
