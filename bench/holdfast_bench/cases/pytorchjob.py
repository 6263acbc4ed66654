"""What a user would pick today: Kubeflow's PyTorchJob and torch.save to a shared disk, on one cluster with ours, same faults.

Measured only when it is asked for: it takes a cluster, root and a quarter of an hour.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..context import Context
from ..environments import ROOT
from ..model import Figure, Outcome, Row
from ..progress import say
from ..stats import median

if TYPE_CHECKING:
    from ..cluster.story import Chapter, Hit, Side, Story, Told

PATIENCE = "HOLDFAST_BENCH_PATIENCE"  # seconds that a powered-off node is waited for
PICTURE = ROOT / "build" / "pytorchjob.png"
TARGET = "ours recovers from every fault, each time faster than PyTorchJob"
_TITLE = "The same GPT job, the same faults: Holdfast and Kubeflow's PyTorchJob"


def pytorchjob(context: Context) -> Outcome:
    """Three fresh jobs a side: one killed three times, one with a pod deleted, one with a node powered off."""
    from ..cluster import kubeflow, picture, site
    from ..cluster.sides import Ours, Theirs
    from ..cluster.story import DELETE, KILL, POWER, Chapter, Told

    patience = float(os.environ.get(PATIENCE) or 120.0)
    chapters = (
        Chapter("a process, three times", (KILL,) * 3, 120.0),
        Chapter("a pod", (DELETE,), 180.0),
        Chapter("a node", (POWER,), patience),
    )
    with site() as here:
        peers: list[Story | None] = [None] * len(chapters)
        if context.peers:
            with kubeflow.training_operator(here.cluster):
                peers = [_tell("PyTorchJob", lambda: Theirs(here), chapter) for chapter in chapters]
        told = [
            Told(chapter, _tell("Holdfast", lambda: Ours(here), chapter, theirs), theirs)
            for chapter, theirs in zip(chapters, peers, strict=True)
        ]
    picture.draw(PICTURE, told, _TITLE)
    say(f"  {PICTURE}")
    return outcome(told, kubeflow.NOTE if context.peers else "")


def _tell(name: str, start: Callable[[], Side], chapter: Chapter, like: Story | None = None) -> Story:
    from ..cluster.story import tell

    say(f"  {name}: {chapter.name}")
    side = start()
    try:
        return tell(side, chapter, like)
    finally:
        side.end()


def outcome(told: Sequence[Told], note: str) -> Outcome:
    """The figure: seconds of ours after the node's death; it holds if ours came back from all, each time before the peer. Who
    never ran was not beaten; who could not be hit a second time since it did not come back from the first was."""
    pairs = [pair for chapter in told for pair in _pairs(chapter)]
    ours = [hit.seconds for _, hit, _ in pairs if hit is not None and hit.seconds is not None]
    ran = all(chapter.theirs is not None and chapter.theirs.hits for chapter in told)
    holds = bool(pairs) and ran and all(_won(hit, theirs) for _, hit, theirs in pairs)
    _, last, peer = pairs[-1]
    figure = Figure(
        last.seconds if last is not None else None,
        "s",
        TARGET,
        holds,
        peer.seconds if peer is not None else None,
        None,
        ours,
    )
    ratios = [o.seconds / t.seconds for _, o, t in pairs if o is not None and t is not None and o.seconds and t.seconds]
    details = {"note": note, "chapters": [t.record() for t in told], "ratio": median(ratios) if ratios else None}
    return Outcome(figure, [_row(*pair) for pair in pairs], details)


def _pairs(told: Told) -> list[tuple[str, Hit | None, Hit | None]]:
    """(fault, ours, theirs) of a chapter; the same fault again is numbered. None: it was not tried."""
    found = []
    for number, kind in enumerate(told.chapter.kinds):
        case = kind if number == 0 else f"{kind}, time {number + 1}"
        found.append((case, _of(told.ours, number), _of(told.theirs, number)))
    return found


def _of(story: Story | None, number: int) -> Hit | None:
    return story.hits[number] if story is not None and number < len(story.hits) else None


def _won(ours: Hit | None, theirs: Hit | None) -> bool:
    if ours is None or ours.seconds is None:
        return False
    return theirs is None or theirs.seconds is None or ours.seconds < theirs.seconds


def _row(case: str, ours: Hit | None, theirs: Hit | None) -> Row:
    mine, peer = (hit.seconds if hit is not None else None for hit in (ours, theirs))
    ratio = mine / peer if mine is not None and peer else None
    notes = [f"{name}: {_said(hit)}" for name, hit in (("ours", ours), ("PyTorchJob", theirs))]
    return Row(case, "PyTorchJob 1.8.1", "s", mine, peer, None, ratio, "; ".join(notes))


def _said(hit: Hit | None) -> str:
    if hit is None:
        return "not tried"
    return ", ".join(filter(None, (hit.told, hit.note)))
