"""Rounds of replication, decided by the coordinator and carried out by members, without any bytes: who keeps what, and when."""

from __future__ import annotations

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.erasure.groups import Group
from holdfast_core.messages import PEERS, Member, Order, Reached, Source
from holdfast_core.protection import rank_groups
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar.group.keeping import Kept, ordered, prepared
from holdfast_sidecar.group.protect import AMNESTY_SECONDS, BLAMES, ROUND_SECONDS, Protect

A = 3  # the attempt


def copy(step: int) -> Copy:
    return Copy(step, A)


def protect(pods: int = 3, size: int = 4, parity: int = 1, pace: float = 0.0) -> Protect:
    members = [Member(i, f"p{i}", "h", 1, i, 1, f"node{i}") for i in range(pods)]
    return Protect(A, members, (Resume(A, -1),), PeersConfig(size, parity), pace)


def all_told(p: Protect, pods: int = 3) -> None:
    for index in range(pods):
        p.joined(index)
        p.told(index)


def words(orders: list[Order]) -> list[tuple[str, int]]:
    return [(o.kind, o.copy.step) for o in orders]


def whole(p: Protect, index: int, step: int, number: int) -> None:
    codewords = rank_groups(p.groups, p._members)
    p.holds(index, Reached(A, PEERS, index, copy(step), group=codewords[index][0], parity=codewords[index][1], round=number))


def begun(step: int = 5, pods: int = 3, pace: float = 0.0) -> tuple[Protect, int]:
    p = protect(pods, pace=pace)
    all_told(p, pods)
    orders = p.advance(copy(step), 0.0)
    assert words(orders) == [("replicate", step)]
    return p, orders[0].round


# --- the coordinator


def test_a_step_is_protected_only_when_every_member_holds_its_parity():
    p, number = begun()
    for index in (0, 1):
        whole(p, index, 5, number)
        assert p.advance(copy(6), 1.0) == [], "one member's parity is missing"
    whole(p, 2, 5, number)
    assert words(p.advance(copy(6), 1.0)) == [("committed", 5), ("replicate", 6)]


def test_one_step_at_a_time_and_always_the_newest():
    p, number = begun()
    assert p.advance(copy(6), 1.0) == p.advance(copy(9), 2.0) == []
    for index in range(3):
        whole(p, index, 5, number)
    assert words(p.advance(copy(9), 3.0)) == [("committed", 5), ("replicate", 9)]


def test_rounds_are_paced_from_one_beginning_to_the_next():
    p, number = begun(pace=0.5)
    for index in range(3):
        whole(p, index, 5, number)
    assert words(p.advance(copy(6), 0.1)) == [("committed", 5)]
    assert p.advance(copy(8), 0.4) == []
    orders = p.advance(copy(9), 0.5)
    assert words(orders) == [("replicate", 9)], "the newest by then"
    for index in range(3):
        whole(p, index, 9, orders[0].round)
    assert words(p.advance(copy(12), 1.7)) == [("committed", 9), ("replicate", 12)], "a longer round waits for nothing"


def test_nothing_begins_before_every_member_has_told_what_it_holds():
    p = protect()
    for index in (0, 1):
        p.joined(index)
        p.told(index)
    assert p.advance(copy(5), 0.0) == []
    p.joined(2)
    p.told(2)
    assert words(p.advance(copy(5), 0.0)) == [("replicate", 5)]


def test_a_new_coordinator_first_commits_what_all_hold_whoever_ordered_it():
    p = protect()
    for index in range(3):
        p.joined(index)
        whole(p, index, 5, 0)
        p.told(index)
    assert words(p.advance(copy(8), 0.0)) == [("committed", 5), ("replicate", 8)]


def test_a_word_that_crossed_a_release_does_not_count_in_the_next_round_of_the_same_step():
    p, first = begun()
    whole(p, 0, 5, first)
    assert words(p.failed(Reached(A, PEERS, 1, copy(5), error="stalled", round=first, blame=2), 1.0)) == [("release", 5)]
    orders = p.advance(copy(5), 10.0)
    second = orders[0].round
    assert words(orders) == [("replicate", 5)]
    assert second != first
    whole(p, 0, 5, first)  # late: sent before the release was heard, upon which it was given up
    whole(p, 1, 5, second)
    whole(p, 2, 5, second)
    assert p.advance(copy(5), 10.0) == []
    whole(p, 0, 5, second)
    assert words(p.advance(copy(5), 10.0)) == [("committed", 5)]


def test_what_a_member_tells_on_joining_does_not_count_if_the_present_round_makes_it_give_that_up():
    """All lose their connection when step 6 is ordered, and tell on their return that they hold step 5: it is being dropped."""
    p, number = begun()
    for index in range(3):
        whole(p, index, 5, number)
    p.advance(copy(5), 1.0)
    assert words(p.advance(copy(6), 1.0)) == [("replicate", 6)]
    q = p
    q.committed = None  # as if step 5 had never been committed
    for index in range(3):
        q.left(index)
        assert ("replicate", 6) in words(q.joined(index))
        whole(q, index, 5, 0)
        q.told(index)
    assert q.advance(copy(6), 3.0) == []


def test_a_member_that_comes_back_hears_where_things_stand():
    p, number = begun()
    for index in range(3):
        whole(p, index, 5, number)
    p.advance(copy(6), 1.0)
    p.left(1)
    assert words(p.joined(1)) == [("committed", 5), ("replicate", 6)]


def test_an_answer_to_an_earlier_coordinators_round_of_the_same_number_does_not_count():
    """All worked on step 5 in its round 1 when it was restarted; its successor has ordered step 6, in a round 1 of its own."""
    p, number = begun(6)
    for index in range(3):
        whole(p, index, 5, number)
    assert p.advance(copy(6), 1.0) == [], "nobody holds step 5 any more once the order for step 6 is heard"
    assert p.failed(Reached(A, PEERS, 1, copy(5), error="no answer", round=number), 1.0) == []


def test_a_failed_round_is_tried_again_later_and_less_and_less_often():
    p, number = begun()
    now, pauses = 0.0, []
    for _ in range(3):
        p.failed(Reached(A, PEERS, 0, copy(5), error="no answer", round=number, blame=-1), now)
        start = now
        while not (orders := p.advance(copy(5), now)):
            now += 0.25
        pauses.append(now - start)
        number = orders[0].round
    assert pauses == sorted(pauses)
    assert pauses[0] > 0
    assert pauses[-1] > pauses[0]


def test_the_others_go_on_without_a_pod_that_fails_every_round_and_forgive_it_later():
    p, number = begun(pods=4)
    now = 0.0
    for _ in range(BLAMES):
        p.failed(Reached(A, PEERS, 0, copy(5), error="pod 3 sends wrong bytes", round=number, blame=3), now)
        now += 20.0
        orders = p.advance(copy(5), now)
        assert words(orders) == [("replicate", 5)]
        number = orders[0].round
    assert orders[0].groups == (Group((0, 1, 2), 1),)
    for index in range(3):
        whole(p, index, 5, number)
    assert words(p.advance(copy(5), now)) == [("committed", 5)]
    later = p.advance(copy(6), now + AMNESTY_SECONDS + 1)
    assert later[0].groups == (Group((0, 1, 2, 3), 1),)


@pytest.mark.parametrize(("done", "slow"), [((3,), 3), ((0, 1, 2), 3)])
def test_a_round_that_does_not_end_names_who_is_missing_and_goes_on_without_who_holds_it_up(done: tuple[int, ...], slow: int):
    """Pod 3 sends too slowly, so that all wait for it, or it is the only one that is not done."""
    p, number = begun(pods=4)
    now = 0.0
    for _ in range(BLAMES):
        for index in done:
            whole(p, index, 5, number)
        assert p.advance(copy(6), now + ROUND_SECONDS) == []
        now += ROUND_SECONDS + 1
        (release, *_) = p.advance(copy(6), now)
        assert release.kind == "release"
        missing = ", ".join(str(i) for i in range(4) if i not in done)
        assert f"pod{'s' if len(done) == 1 else ''} {missing}" in release.reason
        now += 20.0
        for order in p.advance(copy(5), now):
            number = order.round
    assert set(p.without) == {slow}


def test_while_a_member_is_away_nothing_that_may_be_needed_to_rebuild_it_is_given_up():
    """It may be dead, and the operator down: for hours nobody else decides what becomes of its rank."""
    p, number = begun(pods=4)
    for index in range(4):
        whole(p, index, 5, number)
    assert words(p.advance(copy(6), 1.0)) == [("committed", 5), ("replicate", 6)]
    p.left(3)
    for now in (10.0, 100.0, 500.0):
        assert p.advance(copy(7), now) == []
    p.joined(3)
    p.told(3)
    assert p.advance(copy(7), 501.0) == [], "the round goes on with it"


def test_a_member_never_heard_of_since_the_coordinators_start_is_waited_for():
    """An earlier coordinator may have committed a step that only that member's word would tell."""
    p = protect(4)
    for index in range(3):
        p.joined(index)
        p.told(index)
    p.left(3)
    assert p.advance(copy(5), 1000.0) == []


@pytest.mark.parametrize(("pods", "parity"), [(1, 1), (3, 0)])
def test_with_nobody_to_protect_nothing_is_ordered(pods, parity):
    p = protect(pods, parity=parity)
    all_told(p, pods)
    assert p.advance(copy(5), 0.0) == []


# --- the member


GROUPS = (Group((0, 1, 2), 1),)


def order(kind: str, step: int, groups: tuple[Group, ...] = GROUPS) -> Order:
    return Order(kind, A, PEERS, copy(step), groups=groups, round=1)


def test_the_protected_step_stays_until_a_newer_one_is_committed_that_this_pod_holds():
    kept = ordered(Kept(copy(5)), order("replicate", 6), 0, {copy(5)})
    assert kept == Kept(copy(5), copy(6))
    assert ordered(kept, order("committed", 6), 0, {copy(5)}) == kept, "its own parity of step 6 is not whole"
    assert ordered(kept, order("committed", 6), 0, {copy(5), copy(6)}) == Kept(copy(6))


def test_a_release_gives_up_the_pending_step_and_no_other():
    kept = Kept(copy(5), copy(6))
    assert ordered(kept, order("release", 6), 0, {copy(5)}) == Kept(copy(5))
    assert ordered(kept, order("release", 4), 0, {copy(5)}) == kept
    assert ordered(Kept(copy(5)), order("release", 5), 0, {copy(5)}) == Kept(copy(5))


def test_a_commit_of_the_protected_step_said_again_leaves_the_pending_one():
    kept = Kept(copy(5), copy(6))
    assert ordered(kept, order("committed", 5), 0, {copy(5), copy(6)}) == kept


def test_a_pod_that_is_left_out_keeps_its_part_of_the_protected_step_until_the_others_have_the_next_one():
    without = (Group((1, 2), 1),)
    kept = ordered(Kept(copy(5), copy(6)), order("replicate", 6, without), 0, {copy(5)})
    assert kept == Kept(copy(5))
    assert ordered(kept, order("committed", 6, without), 0, {copy(5)}) == Kept()


def test_a_left_out_pod_that_comes_back_meanwhile_is_told_that_the_protected_step_counts_on_it():
    p, number = begun(pods=4)
    for index in range(4):
        whole(p, index, 5, number)
    now = 1.0
    number = p.advance(copy(6), now)[1].round
    for _ in range(BLAMES):
        p.failed(Reached(A, PEERS, 0, copy(6), error="pod 3 sends wrong bytes", round=number, blame=3), now)
        now += 20.0
        number = p.advance(copy(6), now)[0].round
    committed, replicate = p.joined(3)
    assert committed.groups == (Group((0, 1, 2, 3), 1),)
    assert replicate.groups == (Group((0, 1, 2), 1),)


def test_a_pod_in_no_group_keeps_nothing_for_others():
    assert ordered(Kept(copy(5), copy(6)), order("committed", 6), 7, {copy(5)}) == Kept()


def test_an_attempt_rebuilt_from_peers_protects_that_very_step():
    assert prepared(Kept(copy(6), copy(7)), Source(PEERS, 6, A), (Resume(A + 1, 6),)) == Kept(copy(6))
    assert prepared(Kept(), Source(PEERS, 6, A), (Resume(A + 1, 6),)) == Kept(copy(6)), "the rebuilt part is needed by others"


def test_an_attempt_rebuilt_from_a_step_that_not_all_hold_parity_of_keeps_the_older_one_that_they_do():
    kept = Kept(copy(5), copy(6))
    assert prepared(kept, Source(PEERS, 6, A), (Resume(A + 1, 6),)) == kept
    assert prepared(kept, Source(PEERS, 4, A), (Resume(A + 1, 4),)) == Kept(copy(4)), "it is void"


def test_an_attempt_from_memory_keeps_what_is_still_valid():
    kept = Kept(copy(5), copy(6))
    assert prepared(kept, Source("memory", 8, A), (Resume(A + 1, 8),)) == kept
    assert prepared(kept, Source("pvc", 5, A), (Resume(A + 1, 5),)) == Kept(copy(5))
    assert prepared(kept, None, (Resume(A + 1, -1),)) == Kept()
