"""What a group asks of a pod: connections to serve, a least rate, and to be done when the others are."""

from __future__ import annotations

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.erasure.groups import Group, Place, make_groups
from holdfast_core.protection import Patience, connections, least_rate, suspect


@pytest.mark.parametrize("processes", [1, 8, 16, 64])
@pytest.mark.parametrize(("size", "parity"), [(2, 1), (4, 1), (8, 2), (16, 1), (32, 8)])
def test_a_pod_may_serve_all_ranks_of_its_group_and_those_of_the_round_before(size: int, parity: int, processes: int) -> None:
    largest = max(
        len(group.members)
        for pods in range(2, 4 * size)
        for group in make_groups([Place(i, "") for i in range(pods)], size, parity)
    )
    assert connections(PeersConfig(size, parity), processes) >= 2 * (largest - 1) * processes + 8 * parity * processes


MIB = 1 << 20


def waits(patience: Patience, rate: float, seconds: float, piece: int = MIB) -> Patience:
    """For a source that sends piece after piece at such a rate."""
    for _ in range(max(1, int(seconds * rate / piece))):
        patience = patience.after(piece / rate, piece)
    return patience


def test_a_source_below_the_least_rate_is_waited_for_only_so_long():
    patience = Patience(least=200_000, left=10.0)
    assert not waits(patience, 220_000, 3600).is_out
    assert waits(patience, 100_000, 32).is_out
    assert patience.after(10.1, 8).is_out


def test_what_a_source_sent_fast_before_earns_it_no_more_than_the_first_seconds():
    patience = waits(Patience(least=200_000, left=10.0), 1e9, 60)
    assert not patience.is_out
    assert patience.after(10.1, 0).is_out


def test_a_piece_that_takes_long_by_the_limit_alone_is_no_reason():
    assert not Patience(least=1000, left=10.0).after(60.0, MIB).is_out


def test_without_a_least_rate_any_is_good():
    assert not Patience(0.0, 10.0).after(1e6, 1).is_out


@pytest.mark.parametrize("bandwidth", [1000, 100_000, 10 * MIB, 1 << 40])
@pytest.mark.parametrize("sharing", [1, 3, 24, 496])
def test_who_keeps_to_the_limit_is_never_too_slow(bandwidth: int, sharing: int):
    """Even if others take as much of it again, several times over."""
    assert least_rate(bandwidth, sharing) <= bandwidth / sharing / 16
    assert least_rate(bandwidth, sharing) <= least_rate(0, sharing)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ({0, 1, 2}, 3),  # all but one: it is slow itself
        ({3}, 3),  # one alone: all others wait for what it sends
        ({0, 1}, -1),
        (set(), -1),
        ({4, 5, 6, 0, 1, 2}, 3),  # the other group is done
        ({4, 0, 1, 2}, -1),  # two suspects
        ({7}, -1),
    ],
)
def test_who_holds_up_a_round_that_does_not_end(done: set[int], expected: int):
    groups = (Group((0, 1, 2, 3), 1), Group((4, 5, 6), 1))
    if not done & {4, 5, 6}:
        groups = groups[:1]
    assert suspect(groups, done) == expected


def test_of_two_it_is_not_known_which_one_is_slow():
    assert suspect((Group((0, 1), 1),), {0}) == -1
