"""What a figure claims is what was measured: no peer is beaten that never ran, the load is told as it was."""

import pytest
from holdfast_bench.cases import nodes, pytorchjob
from holdfast_bench.cluster.story import KILL, Chapter, Hit, Story, Told


def test_a_peer_that_never_ran_was_not_beaten():
    story = Story([(0.0, 0), (20.0, 200), (21.0, 201)], [Hit(KILL, 20.0, 0.5, 120.0)], 60.0)
    chapter = Chapter("a process", (KILL,), 120.0)
    assert not pytorchjob.outcome([Told(chapter, story, None)], "").figure.holds
    empty = Story([(0.0, 0)], [], 60.0)
    assert not pytorchjob.outcome([Told(chapter, story, empty)], "").figure.holds, "and it was never hit"


@pytest.mark.parametrize(
    ("cores", "said"), [(2, "2 busy loops in the node's namespaces"), (1, "1 busy loop in the node's namespaces")]
)
def test_the_load_is_told_as_it_was(monkeypatch, cores, said):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert nodes.load() == said
