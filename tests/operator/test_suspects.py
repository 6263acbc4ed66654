"""Which nodes new pods should rather not go to."""

from __future__ import annotations

import pytest
from holdfast_core.planner import PodView
from holdfast_operator.suspects import Suspects

SILENT = PodView("a", 0, 1, phase="Running", node="n1", agent_age=6.0, dial_failures=2)
HEARD = PodView("b", 1, 1, phase="Running", node="n1", agent_age=0.5)


@pytest.mark.parametrize(
    ("view", "suspect"),
    [
        (SILENT, True),
        (HEARD, False),
        (PodView("a", 0, 1, phase="Running", node="n1", agent_age=6.0, dial_failures=2, refused=True), False),
        (PodView("a", 0, 1, phase="Running", node="n1", agent_age=6.0), False),  # not dialled again yet
        (PodView("a", 0, 1, phase="Running", node="n1", agent_age=2.2, unanswered=2), True),
        (PodView("a", 0, 1, phase="Running", node="n1", agent_age=2.2, unanswered=1), False),
        (PodView("a", 0, 1, phase="Running", node="n1", node_ready=False), True),
        (PodView("a", 0, 1, phase="Failed", node="n1", agent_age=60.0, dial_failures=9), False),
        (PodView("a", 0, 1, agent_age=60.0, dial_failures=9), False),  # nowhere yet
    ],
)
def test_who_is_suspect(view: PodView, suspect: bool):
    suspects = Suspects(5.0)
    suspects.update([view], 100.0)
    assert tuple(sorted(suspects.since)) == (("n1",) if suspect else ())


def test_suspicion_outlives_the_pod_and_fades():
    suspects = Suspects(5.0)
    suspects.update([SILENT], 100.0)
    suspects.update([], 210.0)
    assert tuple(sorted(suspects.since)) == ("n1",)
    suspects.update([], 221.0)
    assert suspects.since == {}


def test_a_word_from_the_node_clears_it():
    suspects = Suspects(5.0)
    suspects.update([SILENT], 100.0)
    suspects.update([SILENT, HEARD], 101.0)
    assert suspects.since == {}
