"""The rows and panels of the Grafana dashboard, with their queries; `dashboard.py` makes Grafana's JSON of them.

Every query selects by `$namespace` and `$job`, and only uses metrics of docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

JOB = 'namespace="$namespace", job_name=~"$job"'


@dataclass(frozen=True)
class Query:
    """PromQL and the legend of its series, in Grafana's `{{label}}` form."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is Grafana's unit id; sizes are in grid cells."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 12
    height: int = 8
    custom: dict[str, Any] = field(default_factory=dict)


def _stat(title: str, description: str, expr: str, unit: str = "short", **custom: Any) -> Panel:
    return Panel(title, description, (Query(expr, "{{job_name}}"),), "stat", unit, width=4, height=4, custom=custom)


def _mean(metric: str, labels: str) -> str:
    """Mean of a histogram since its program started: rare events leave nothing to take a rate of."""
    return f"sum by ({labels}) ({metric}_sum{{{JOB}}}) / sum by ({labels}) ({metric}_count{{{JOB}}})"


def _rate(metric: str, labels: str) -> str:
    return f"sum by ({labels}) (rate({metric}{{{JOB}}}[$__rate_interval]))"


def _quantile(q: float, metric: str, labels: str, selector: str = JOB) -> str:
    return f"histogram_quantile({q}, sum by (le, {labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def _median_and_tail(metric: str) -> tuple[Query, Query]:
    quantiles = ((0.5, "median"), (0.99, "p99"))
    one, other = (Query(_quantile(q, metric, "job_name"), f"{{{{job_name}}}} {word}") for q, word in quantiles)
    return one, other


_LOST = (
    f"({_rate('holdfast_snapshot_stall_seconds_sum', 'job_name')} + {_rate('holdfast_fence_wait_seconds_total', 'job_name')})"
    f" / count by (job_name) (holdfast_rank_step{{{JOB}}})"
)
_STAIRS = {"lineInterpolation": "stepAfter", "fillOpacity": 0}
_STACKED = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 30, "lineInterpolation": "stepAfter"}
_BARS = {"drawStyle": "bars", "fillOpacity": 80, "stacking": {"mode": "normal", "group": "A"}}

_GOODPUT_STEPS = [{"color": "red", "value": None}, {"color": "orange", "value": 0.8}, {"color": "green", "value": 0.95}]
_UP_STEPS = [{"color": "red", "value": None}, {"color": "green", "value": 1}]

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Job",
        (
            _stat("Step", "Step that all ranks have finished.", f"max by (job_name) (holdfast_job_step{{{JOB}}})"),
            _stat(
                "Goodput",
                "Share of the time since the first step that was not lost to faults, recoveries and repeated steps.",
                f"max by (job_name) (holdfast_job_goodput_ratio{{{JOB}}})",
                "percentunit",
                steps=_GOODPUT_STEPS,
            ),
            _stat("Attempt", "Grows by one with each recovery.", f"max by (job_name) (holdfast_job_attempt{{{JOB}}})"),
            _stat(
                "Recoveries",
                "Finished recoveries since the operator started.",
                f"sum by (job_name) (holdfast_recoveries_total{{{JOB}}})",
            ),
            _stat(
                "Steps lost",
                "Steps that had to be trained again since the operator started.",
                f"sum by (job_name) (holdfast_lost_steps_total{{{JOB}}})",
            ),
            _stat(
                "Sidecars heard",
                "Sidecars whose event stream the operator receives. Below the number of pods: it is blind to some.",
                f"max by (job_name) (holdfast_sidecar_connected{{{JOB}}})",
            ),
        ),
    ),
    (
        "Progress",
        (
            Panel(
                "Steps by rank",
                "Last step that each rank finished. Lines that part show a straggler; a drop is a recovery.",
                (Query(f"max by (job_name, rank) (holdfast_rank_step{{{JOB}}})", "{{job_name}} rank {{rank}}"),),
                custom=_STAIRS,
            ),
            Panel(
                "Freshest step by level",
                "Newest step committed by all ranks at each level, beside the step trained. "
                "The gap to the trained step is what a loss of the fresher levels would cost.",
                (
                    Query(f"max by (job_name) (holdfast_job_step{{{JOB}}})", "{{job_name}} trained"),
                    Query(f"max by (job_name, level) (holdfast_level_step{{{JOB}}})", "{{job_name}} {{level}}"),
                ),
                custom=_STAIRS,
            ),
        ),
    ),
    (
        "Recoveries",
        (
            Panel(
                "Recoveries by cause and level",
                "Finished recoveries since the operator started, by cause and by the level that served.",
                (Query(f"sum by (cause, level) (holdfast_recoveries_total{{{JOB}}})", "{{cause}} from {{level}}"),),
                width=8,
                custom=_STACKED,
            ),
            Panel(
                "Seconds to recover",
                "Mean time from the fault to the next step that all ranks finished, since the operator started.",
                (Query(_mean("holdfast_recovery_seconds", "cause, level"), "{{cause}} from {{level}}"),),
                unit="s",
                width=8,
                custom=_STAIRS,
            ),
            Panel(
                "Attempt of each sidecar",
                "Attempt that the sidecars obey. One that stays behind cannot be reached; what it writes no longer counts.",
                (Query(f"max by (job_name, pod) (holdfast_agent_attempt{{{JOB}}})", "{{pod}}"),),
                width=8,
                custom=_STAIRS,
            ),
        ),
    ),
    (
        "Snapshots",
        (
            Panel(
                "Stall of a snapshot",
                "How long a snapshot holds up the training loop: median and 99th percentile.",
                _median_and_tail("holdfast_snapshot_stall_seconds"),
                unit="s",
                width=8,
            ),
            Panel(
                "Snapshots taken and skipped",
                "Snapshots a second over all ranks. A skipped one costs freshness only; the reason tells what to change.",
                (
                    Query(_rate("holdfast_snapshots_total", "job_name"), "{{job_name}} taken"),
                    Query(f"({_rate('holdfast_snapshots_skipped_total', 'reason')}) or vector(0)", "skipped {{reason}}"),
                ),
                unit="ops",
                width=8,
            ),
            Panel(
                "Memory held by snapshots",
                "Size of the arenas of each pod. It counts against the sidecar's memory limit.",
                (Query(f"max by (pod) (holdfast_arena_bytes{{{JOB}}})", "{{pod}}"),),
                unit="bytes",
                width=8,
            ),
            Panel(
                "Training time lost to snapshots",
                "Share of its time that a rank waits for snapshots: in the call itself, and for copies that are not done yet.",
                (Query(_LOST, "{{job_name}}"),),
                unit="percentunit",
                width=8,
            ),
            Panel(
                "Seconds to capture",
                "Copy and checksum of a snapshot, wherever they run: median and 99th percentile.",
                _median_and_tail("holdfast_capture_seconds"),
                unit="s",
                width=8,
            ),
            Panel(
                "Steps held up by a copy",
                "Snapshots a second whose copy was not done when training wanted to change the state, by rank.",
                (Query(_rate("holdfast_fence_waits_total", "job_name, rank"), "{{job_name}} rank {{rank}}"),),
                unit="ops",
                width=8,
            ),
            Panel(
                "Bytes captured and copied",
                "State in the snapshots, and what of it was copied anew, a second, over all pods. The rest had not changed.",
                (
                    Query(_rate("holdfast_captured_bytes_total", "job_name"), "{{job_name}} captured"),
                    Query(_rate("holdfast_copied_bytes_total", "job_name"), "{{job_name}} copied"),
                ),
                unit="Bps",
                width=8,
            ),
            Panel(
                "Steps between snapshots",
                "The interval that the sidecars obey; status.snapshots of the job explains it.",
                (Query(f"max by (job_name) (holdfast_snapshot_interval_steps{{{JOB}}})", "{{job_name}}"),),
                width=8,
                custom=_STAIRS,
            ),
            Panel(
                "Pods by way of capture",
                "Whether snapshots are copied at once (sync) or behind the next step (lazy), and by how many threads. "
                "Chosen at run time; none: no snapshot yet.",
                (Query(f"count by (mode, threads) (holdfast_capture_mode{{{JOB}}})", "{{mode}} {{threads}}"),),
                width=8,
                custom=_STACKED,
            ),
        ),
    ),
    (
        "Peers",
        (
            Panel(
                "Nodes that may be lost",
                "How many nodes may be lost at once, whichever they are, without losing a step that peers protect.",
                (Query(f"min by (job_name) (holdfast_job_protected_faults{{{JOB}}})", "{{job_name}}"),),
                width=8,
                custom=_STAIRS,
            ),
            Panel(
                "Seconds to replicate",
                "From the order to make parity of a step until a pod holds it whole: median and 99th percentile.",
                _median_and_tail("holdfast_replication_seconds"),
                unit="s",
                width=8,
            ),
            Panel(
                "Bytes received for parity",
                "What pods receive from their peers a second, over all pods. What did not change is not sent again.",
                (Query(_rate("holdfast_parity_received_bytes_total", "job_name"), "{{job_name}}"),),
                unit="Bps",
                width=8,
            ),
            Panel(
                "Parity made and failed",
                "Ranks a second whose parity of a step was made, or was not. The condition Protected names who is to blame.",
                (Query(_rate("holdfast_replications_total", "job_name, result"), "{{job_name}} {{result}}"),),
                unit="ops",
                width=8,
            ),
            Panel(
                "Memory held by parity",
                "What each pod holds for its peers. It counts against the sidecar's memory limit.",
                (Query(f"max by (pod) (holdfast_parity_bytes{{{JOB}}})", "{{pod}}"),),
                unit="bytes",
                width=8,
            ),
            Panel(
                "Silent peers",
                "Pods that do not answer those that watch them, and nodes that new pods are kept from.",
                (
                    Query(f"max by (pod) (holdfast_peers_silent{{{JOB}}})", "seen from {{pod}}"),
                    Query(f"max by (job_name) (holdfast_job_avoided_nodes{{{JOB}}})", "{{job_name}} avoids"),
                ),
                width=8,
                custom=_STAIRS,
            ),
            Panel(
                "Seconds to see a dead node",
                "Mean silence of a pod when it was judged lost with its node, since the operator started; 0 if none was.",
                (Query(f"({_mean('holdfast_detection_seconds', 'cause')}) or vector(0)", "{{cause}}"),),
                unit="s",
                custom=_STAIRS,
            ),
            Panel(
                "Spares ready",
                "Pods that wait without a rank and could take one at once.",
                (Query(f"max by (job_name) (holdfast_job_spares_ready{{{JOB}}})", "{{job_name}}"),),
                custom=_STAIRS,
            ),
        ),
    ),
    (
        "Levels",
        (
            Panel(
                "Bytes by level",
                "Captured into memory, uploaded to stores, and made ready to restore from, a second, over all pods.",
                (
                    Query(_rate("holdfast_captured_bytes_total", "job_name"), "captured {{job_name}}"),
                    Query(_rate("holdfast_uploaded_bytes_total", "level"), "uploaded {{level}}"),
                    Query(_rate("holdfast_restored_bytes_total", "level"), "restored {{level}}"),
                ),
                unit="Bps",
            ),
            Panel(
                "Seconds to commit to a store",
                "Mean time from the order to save a step until its manifest stood in the store.",
                (Query(_mean("holdfast_store_commit_seconds", "level"), "{{level}}"),),
                unit="s",
                custom=_STAIRS,
            ),
            Panel(
                "Store health",
                "Whether the last access of every sidecar to the store worked. Training goes on without it; saves catch up.",
                (Query(f"min by (level) (holdfast_store_up{{{JOB}}})", "{{level}}"),),
                kind="state-timeline",
                height=6,
                custom={"steps": _UP_STEPS, "mappings": {"0": ("failing", "red"), "1": ("works", "green")}},
            ),
            Panel(
                "Store errors",
                "Failed accesses a second, over all pods.",
                (Query(_rate("holdfast_store_errors_total", "level"), "{{level}}"),),
                unit="ops",
                height=6,
                custom=_BARS,
            ),
        ),
    ),
    (
        "Operator, all jobs",
        (
            Panel(
                "Jobs by phase",
                "All TrainingJobs that the operator looks after.",
                (Query("max by (phase) (holdfast_jobs)", "{{phase}}"),),
                width=8,
                custom=_STACKED,
            ),
            Panel(
                "Duration of a pass",
                "Time that the operator takes to look at a job and act: median and 99th percentile.",
                tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) (rate(holdfast_reconcile_seconds_bucket[$__rate_interval])))",
                        name,
                    )
                    for q, name in ((0.5, "median"), (0.99, "p99"))
                ),
                unit="s",
                width=8,
            ),
            Panel(
                "Failed passes",
                "Passes a second that ended in an error and will be tried again: look at the operator's log.",
                (Query("sum(rate(holdfast_reconcile_errors_total[$__rate_interval]))", "failed"),),
                unit="ops",
                width=8,
            ),
        ),
    ),
)
