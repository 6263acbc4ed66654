"""Scripts that broke a promise once, as the explorer found and wrote them; the rules were wrong then, and are mended.

An action that the mended rules do not allow any more is left out of the replay: what the script then leads to has to be well.
"""

from __future__ import annotations

import pytest
from holdfast_spec.mutations import Mutation, applied
from holdfast_spec.script import outcome
from holdfast_spec.world import World

AT_ONCE = frozenset({"hear", "obey", "left", "look", "act", "stop", "notice"})
PEERS = World("three", "", steps=1, faults={"restart": 1, "corrupt": 2, "node": 1, "partition": 1, "wrong": 1}, eager=AT_ONCE)
PAIR = World(
    "two", "", pods=2, steps=1, faults={"wrong": 1, "partition": 1, "process": 1, "corrupt": 1, "lose": 1},
    eager=AT_ONCE | {"join"},
)  # fmt: skip
ORDERED = World("ordered", "", pods=2, steps=1, faults={"process": 1, "lose": 1}, eager=PAIR.eager - {"act", "stop"})
STARTED = """
    plan
    plan
    join 0.1
    join 1.1
    join 2.1
    plan
    train 1
    seal 0.1
    seal 1.1
    seal 2.1
"""


def well(world: World, text: str) -> bool:
    return outcome(world, text, strict=False) == ""


def test_a_restarted_coordinator_counts_its_rounds_from_one_again():
    """Pods 1 and 2 took its round for the one that they were working on: nothing was protected for ten minutes."""
    assert well(PEERS, f"""
        {STARTED}
        train 1
        seal 0.1
        seal 1.1
        seal 2.1
        restart 0.1     # ! round 1 was for step 0, and is for step 1 now
        join 0.1
        join 1.1
        join 2.1
        encode 0.1
        encode 1.1
        encode 2.1
    """)  # fmt: skip


def test_a_pod_that_is_left_out_gave_up_the_protected_step_before_the_next_one_was():
    assert well(PEERS, f"""
        {STARTED}
        encode 0.1
        encode 1.1
        encode 2.1      # step 0 is protected
        train 1
        seal 0.1
        seal 1.1
        seal 2.1
        flip 0.1 2      # ! found by the others: three rounds fail
        encode 1.1
        wait 0.1 9.0
        encode 0.1
        wait 0.1 9.0
        encode 0.1      # the next order is for pods 1 and 2 alone
    """)  # fmt: skip


def test_a_slot_that_is_refused_spoke_against_the_peers_that_had_filled_it():
    assert well(PEERS, f"""
        {STARTED}
        encode 0.1
        encode 1.1
        power n2        # !
        plan
        plan
        join 0.1
        join 1.1
        load 2.2        # from peers
        join 2.2
        encode 0.1
        flip 2.2 2      # ! between preparation and start
        encode 1.1
        encode 2.2
        plan
        plan
        plan
        plan
        join 0.1
        join 1.1
        plan
        plan            # peers were excluded: from scratch
    """)  # fmt: skip


def test_a_step_protected_anew_in_other_groups_lost_its_only_parity_meanwhile():
    assert well(PEERS, f"""
        {STARTED}
        train 1
        seal 0.1
        seal 1.1
        flip 0.1 1      # !
        encode 1.1
        wait 0.1 9.0
        encode 0.1
        wait 0.1 9.0
        seal 2.1
        encode 0.1
        encode 1.1
        encode 2.1
        wait 0.1 100.0  # pod 0 is forgiven: a round for the same step, in other groups
        begin 1.1
        flip 2.1 2      # !
    """)  # fmt: skip


def test_peers_out_of_reach_for_a_moment_were_given_up_for_ever():
    assert well(PAIR, """
        plan
        plan
        plan
        train 1
        seal 0.1
        seal 1.1
        encode 0.1
        encode 1.1
        misjudge 0.1    # !
        plan
        plan
        part n0         # ! its successor can't reach anybody
        load 0.2
        heal n0
        plan
        plan
    """)  # fmt: skip


def test_a_rebuild_gave_up_an_older_step_that_all_held_for_one_that_a_single_pod_held():
    assert well(PAIR, """
        plan
        plan
        plan
        plan
        train 1
        seal 0.1
        seal 1.1
        encode 0.1
        encode 1.1
        train 1
        seal 0.1
        seal 1.1
        encode 0.1
        kill 0.1        # !
        plan
        flip 1.1 2      # !
        plan
        plan
        plan
    """)  # fmt: skip


def test_a_source_was_chosen_while_survivors_could_still_commit_a_fresher_step():
    assert well(ORDERED, """
        plan
        act
        act
        plan
        act
        stop 0.1
        act
        stop 1.1
        plan
        act
        act
        plan
        train 1
        seal 0.1
        seal 1.1
        encode 0.1
        encode 1.1
        train 1
        seal 0.1
        kill 0.1        # !
        plan
        plan            # resumes from step 0, but pod 1 is about to seal step 1
        seal 1.1
        encode 0.1
        encode 1.1
        act
        act
        stop 0.1
    """)  # fmt: skip


STAGES, KEEPING, FAILURES = "holdfast_core.planner.stages", "holdfast_sidecar.group.keeping", "holdfast_core.planner.failures"
AS_IT_WAS = {
    test_a_restarted_coordinator_counts_its_rounds_from_one_again: (
        "holdfast_spec.sidecar:_obey_peers", "pod.task.order == order", "pod.task.order.round == 1",
    ),
    test_a_pod_that_is_left_out_gave_up_the_protected_step_before_the_next_one_was: (
        f"{KEEPING}:ordered", 'return Kept() if order.kind == "committed" else replace(kept, pending=None)', "return Kept()",
    ),
    test_a_slot_that_is_refused_spoke_against_the_peers_that_had_filled_it: (
        f"{FAILURES}:_suspect", " if slot in work.status.excluded else slot", "",
    ),
    test_a_step_protected_anew_in_other_groups_lost_its_only_parity_meanwhile: (
        "holdfast_spec.memory:buffer_for", "not in pod.kept.copies]", "not in pod.kept.copies - {copy}]",
    ),
    test_peers_out_of_reach_for_a_moment_were_given_up_for_ever: (
        f"{STAGES}:_reject", "if not state.passing:", "if True:",
    ),
    test_a_rebuild_gave_up_an_older_step_that_all_held_for_one_that_a_single_pod_held: (
        f"{KEEPING}:prepared", "if protected is None or protected == copy else Kept(protected, copy)", "",
    ),
    test_a_source_was_chosen_while_survivors_could_still_commit_a_fresher_step: (
        f"{STAGES}:_still_running", "bool(old) and", "False and",
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", AS_IT_WAS, ids=lambda test: test.__name__.removeprefix("test_"))
def test_with_the_rule_as_it_was_the_script_breaks_a_promise(script):
    where, new, old = AS_IT_WAS[script]
    with applied(Mutation(script.__name__, "", where, new, old, PAIR)), pytest.raises(AssertionError):
        script()
