"""Both sides' steps over time in one picture, a panel a chapter; every fault marked with what it cost each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .story import Story, Told, pauses

_OURS, _THEIRS = "#2a78c2", "#c0392b"
_INK, _FAINT = "#22303c", "#c9d2da"
_NAMES = {_OURS: "Holdfast", _THEIRS: "PyTorchJob"}
_LEAST = 0.22  # width of a panel, as a share of the widest


def draw(path: Path, chapters: Sequence[Told], title: str) -> None:
    """Write the PNG. Times on the axes are seconds since the first step of each job."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    spans = [max(story.until for _, story in _sides(told)) for told in chapters]
    widths = [max(span, _LEAST * max(spans)) for span in spans]
    figure, panels = plt.subplots(
        1,
        len(chapters),
        figsize=(13, 5.4),
        dpi=130,
        sharey=True,
        squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.06},
    )
    for axes, told, span in zip(panels[0], chapters, spans, strict=True):
        for colour, story in _sides(told):
            _steps(axes, story, colour)
        _faults(axes, told)
        _dress(axes, span)
    panels[0][0].set_ylim(0, 1.03 * max(step for told in chapters for _, story in _sides(told) for _, step in story.steps))
    panels[0][0].set_ylabel("step", color=_INK)
    panels[0][len(chapters) // 2].legend(loc="upper right", frameon=False, fontsize=10)
    figure.supxlabel("seconds since the first step of each job", color=_INK, fontsize=10, y=0.01)
    figure.suptitle(title, x=0.125, y=1.06, ha="left", color=_INK, fontsize=13, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _sides(told: Told) -> list[tuple[str, Story]]:
    return [(_OURS, told.ours), *([(_THEIRS, told.theirs)] if told.theirs is not None else [])]


def _steps(axes: Any, story: Story, colour: str) -> None:
    """The finished steps, broken at each recovery, and the stand-still between as a dotted line."""
    times, steps = broken(story)
    axes.plot(times, steps, color=colour, linewidth=2.0, solid_capstyle="round", zorder=3, label=_NAMES[colour])
    for begin, end, step in pauses(story):
        axes.plot([begin, end], [step, step], color=colour, linewidth=1.4, linestyle=(0, (1, 2)), zorder=2)


def broken(story: Story) -> tuple[list[float], list[float]]:
    """Times and steps with a gap (NaN) before the first step after each recovery."""
    times: list[float] = []
    steps: list[float] = []
    ends = [hit.at + hit.seconds for hit in story.hits if hit.seconds is not None]
    last = 0.0
    for at, step in story.steps:
        if any(last < end <= at + 1e-6 for end in ends):
            times.append(float("nan"))
            steps.append(float("nan"))
        times.append(at)
        steps.append(step)
        last = at + 1e-6
    return times, steps


def _faults(axes: Any, told: Told) -> None:
    """A line at each fault; over the panel what it was, and what it took each side, in the side's colour."""
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False, "fontsize": 10}
    for number, kind in enumerate(told.chapter.kinds):
        hits = [(colour, story.hits[number]) for colour, story in _sides(told) if number < len(story.hits)]
        if not hits:
            continue
        at = hits[0][1].at
        axes.axvline(at, color=_INK, linewidth=0.9, alpha=0.6, zorder=1)
        again = number > 0 and told.chapter.kinds[number - 1] == kind
        words, height = ("again", 43) if again else (kind, 32)  # higher: it may be too close beside the words
        axes.annotate(words, xy=(at, 1.0), xytext=(0, height), color=_INK, **{**place, "fontsize": 9})
        for row, (colour, hit) in enumerate(hits):
            axes.annotate(hit.told, xy=(at, 1.0), xytext=(0, 19 - 14 * row), color=colour, fontweight="bold", **place)


def _dress(axes: Any, span: float) -> None:
    axes.set_xlim(0, span * 1.01)
    axes.grid(color=_FAINT, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK)
