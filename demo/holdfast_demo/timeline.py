"""The picture: steps over time, every fault marked with what served the recovery, what it cost, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import NONE, Outcome
from .steplog import Sample

_COLOURS = {NONE: "#2a9d8f", "memory": "#2a78c2", "peers": "#c2487a", "pvc": "#e08a1e", "s3": "#8e4ec6"}
_OTHER = "#c0392b"
_INK, _FAINT = "#22303c", "#c9d2da"
_ROW = 30  # points between rows of labels
_LABEL = 0.22  # width of a label, as a share of the axis


def draw(path: Path, samples: Sequence[Sample], outcomes: Sequence[Outcome], title: str) -> None:
    """Write the PNG. Times on the axis are seconds since the first step."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    zero = samples[0].time
    figure, axes = plt.subplots(figsize=(13, 7.2), dpi=130)
    _steps(axes, samples, outcomes, zero)
    rows = _rows(outcomes, samples[-1].time - zero)
    for number, (outcome, level) in enumerate(zip(outcomes, rows, strict=True), 1):
        _mark(axes, outcome, number, zero, level)
    _dress(axes, outcomes, title, 24 + _ROW * (1 + max(rows, default=0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _steps(axes: Any, samples: Sequence[Sample], outcomes: Sequence[Outcome], zero: float) -> None:
    """The steps of rank 0; broken at each recovery, so that a stop looks like one."""
    ends = [o.resumed_at for o in outcomes if o.level != NONE]
    times: list[float] = []
    steps: list[float] = []
    for before, sample in zip((samples[0], *samples), samples, strict=False):
        if any(before.time < end <= sample.time for end in ends):
            times.append(float("nan"))
            steps.append(float("nan"))
        times.append(sample.time - zero)
        steps.append(sample.step)
    axes.plot(times, steps, color=_INK, linewidth=2.0, solid_capstyle="round", zorder=3, label="steps finished by rank 0")


def _rows(outcomes: Sequence[Outcome], span: float) -> list[int]:
    """Row of each label above the plot: over those that begin beneath its text, so that no leader crosses a label."""
    width = _LABEL * span
    rows = [0] * len(outcomes)
    for i in range(len(outcomes) - 1, -1, -1):
        near = [rows[j] for j in range(i + 1, len(outcomes)) if outcomes[j].at - outcomes[i].at < width]
        rows[i] = max(near, default=-1) + 1
    return rows


def _mark(axes: Any, outcome: Outcome, number: int, zero: float, level: int) -> None:
    """A band from fault to next step, a dot where training went on, and a label above the plot."""
    colour = _OTHER if outcome.problem else _COLOURS.get(outcome.level, _OTHER)
    begin, end = outcome.at - zero, outcome.resumed_at - zero
    axes.axvspan(begin, max(end, begin + 0.15), color=colour, alpha=0.22, linewidth=0, zorder=1)
    axes.axvline(begin, color=colour, linewidth=1.2, zorder=2)
    axes.plot([end], [outcome.resumed_step + 1], "o", color=colour, markersize=6, zorder=4)
    what = "never stopped" if outcome.level == NONE else f"{outcome.level}, {outcome.seconds:.1f} s, {outcome.lost_steps} lost"
    height = 6 + _ROW * level
    place = {"xy": (begin, 1.0), "xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
    leader = {"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xytext=(0, height + _ROW - 4), arrowprops=leader, **place)
    axes.annotate(
        f"{number}  {outcome.kind}\n    {what}", xytext=(4, height), color=colour, fontsize=9, linespacing=1.3, **place
    )


def _dress(axes: Any, outcomes: Sequence[Outcome], title: str, pad: float) -> None:
    from matplotlib.patches import Patch

    used = dict.fromkeys(o.level for o in outcomes)
    names = {NONE: "training never stopped"}
    patches = [Patch(color=_COLOURS.get(k, _OTHER), alpha=0.5, label=names.get(k, f"restored from {k}")) for k in used]
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, *patches], loc="lower right", frameon=False, fontsize=10)
    axes.set_xlabel("seconds since the first step", color=_INK)
    axes.set_ylabel("step", color=_INK)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)
    axes.grid(color=_FAINT, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK)
    axes.set_title(title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=pad)
