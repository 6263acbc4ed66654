"""The commit and recovery protocol, explored: no order of events, and no fault, breaks a promise in a small world."""

from __future__ import annotations

import pytest
from holdfast_spec import script, worlds
from holdfast_spec.explore import Explorer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("world", worlds.SMALL, ids=lambda w: w.name)
def test_no_promise_is_broken_and_training_always_goes_on(world):
    result = Explorer(world).run()
    print(f"{world.name}: {result.states} states, {result.transitions} transitions, {result.seconds:.1f} s")
    assert not result.violation, f"{result.violation}\n{script.text(world, result.script)}"
    assert result.complete
