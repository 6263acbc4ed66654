"""The model sees what is wrong: each mutation of a rule breaks a promise in a world where the right rule breaks none."""

from __future__ import annotations

import pytest
from holdfast_core import arena
from holdfast_spec import mutations, script, worlds
from holdfast_spec.mutations import MUTATIONS, Mutation, Outdated

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_wrong_rule_is_caught(mutation):
    result = mutations.hunt(mutation)
    assert result.violation, f"{mutation.about}: not caught in {result.states} states"


@pytest.mark.slow
def test_the_script_that_caught_it_breaks_the_promise_with_the_wrong_rule_alone():
    mutation = next(m for m in MUTATIONS if m.name == "commit-early")
    result = mutations.hunt(mutation)
    text = script.text(mutation.world, result.script)
    assert script.outcome(mutation.world, text, strict=False) == ""
    with mutations.applied(mutation):
        assert script.outcome(mutation.world, text) == result.violation


def test_the_hunts_are_in_worlds_that_are_explored_without_mutations_too():
    assert {m.world.name for m in MUTATIONS} <= {w.name for w in (*worlds.SMALL, *worlds.LARGE)}
    assert len(MUTATIONS) >= 12


def test_the_right_rule_is_back_afterwards():
    right = arena.choose_slot
    with mutations.applied(next(m for m in MUTATIONS if m.name == "reuse-early")):
        assert arena.choose_slot is not right
    assert arena.choose_slot is right


def test_a_mutation_of_a_text_that_is_not_there_says_so():
    gone = Mutation("gone", "", "holdfast_core.arena:choose_slot", "no such words", "", worlds.CALM)
    with pytest.raises(Outdated, match="0 times 'no such words'"), mutations.applied(gone):
        pass
