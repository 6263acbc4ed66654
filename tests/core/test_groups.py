"""Groups: every pod that can be is protected, spread over failure domains, and always in the same way."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from holdfast_core import wire
from holdfast_core.erasure.groups import Group, Place, make_groups, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st


def places(domains: str) -> list[Place]:
    """One letter a pod: its domain; "." is unknown."""
    return [Place(index, "" if domain == "." else domain) for index, domain in enumerate(domains)]


@pytest.mark.parametrize(
    ("domains", "size", "parity", "expected"),
    [
        ("abcdefgh", 4, 1, [(0, 1, 2, 3), (4, 5, 6, 7)]),  # all differ: neighbours
        ("........", 4, 1, [(0, 1, 2, 3), (4, 5, 6, 7)]),  # unknown: the same
        ("aabbccdd", 4, 1, [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("abcde", 4, 1, [(0, 1, 2), (3, 4)]),  # evenly, not four and one
        ("abcdefg", 3, 1, [(0, 1, 2), (3, 4), (5, 6)]),
        ("ab", 4, 1, [(0, 1)]),
        ("abc", 2, 1, [(0, 1, 2)]),  # rather three than one alone
        ("abcde", 4, 2, [(0, 1, 2, 3, 4)]),  # rather five than one that is too small for the parity
        ("aaab", 2, 1, [(0, 2), (1, 3)]),  # three on one node: two of them have to share a group
    ],
)
def test_who_groups_with_whom(domains, size, parity, expected):
    assert make_groups(places(domains), size, parity) == tuple(Group(members, parity) for members in expected)


@pytest.mark.parametrize(("domains", "size", "parity"), [("", 4, 1), ("a", 4, 1), ("abcd", 4, 0), ("abcd", 1, 0)])
def test_nobody_to_protect_or_no_parity_makes_no_groups(domains, size, parity):
    assert make_groups(places(domains), size, parity) == ()


@pytest.mark.parametrize(("domains", "parity", "left"), [("ab", 2, 1), ("abc", 3, 2), ("abc", 9, 2), ("abcd", 3, 3)])
def test_too_few_pods_get_the_parity_that_they_allow(domains, parity, left):
    assert make_groups(places(domains), 4, parity) == (Group(tuple(range(len(domains))), left),)


def test_pods_left_out_are_in_no_group():
    assert make_groups(places("abcdef"), 2, 1, without={1, 4}) == (Group((0, 2), 1), Group((3, 5), 1))
    assert make_groups(places("ab"), 2, 1, without={1}) == ()


def test_a_group_goes_over_the_wire():
    group = Group((0, 2, 5), 2)
    assert wire.loads(Group, wire.dumps(group)) == group


pods = st.lists(st.sampled_from([*"abcdefghij", ""]), max_size=24).map(
    lambda domains: [Place(3 * i, d) for i, d in enumerate(domains)]
)
sizes, parities = st.integers(1, 8), st.integers(1, 3)


def domain_counts(group: Group, by_index: dict[int, str]) -> list[int]:
    return list(Counter(by_index[m] or f"alone {m}" for m in group.members).values())


@given(pods, sizes, parities)
@settings(max_examples=300)
def test_everybody_is_in_one_group_and_groups_are_even(pods, size, parity):
    groups = make_groups(pods, size, parity)
    members = [m for g in groups for m in g.members]
    assert sorted(members) == ([p.index for p in pods] if len(pods) > 1 else [])
    sizes = [len(g.members) for g in groups]
    if groups:
        assert max(sizes) - min(sizes) <= 1
        assert {g.parity for g in groups} == {min(parity, len(pods) - 1)}
        assert all(len(g.members) > g.parity for g in groups)
        most = -(-len(pods) // size)
        assert len(groups) == most or (len(groups) < most and len(pods) < (len(groups) + 1) * (groups[0].parity + 1))


@given(pods, sizes, parities)
@settings(max_examples=300)
def test_a_domain_is_in_each_group_as_little_as_it_can_be(pods, size, parity):
    groups = make_groups(pods, size, parity)
    by_index = {p.index: p.domain for p in pods}
    totals = Counter(p.domain for p in pods if p.domain)
    for group in groups:
        assert max(domain_counts(group, by_index)) <= max([1, *(-(-n // len(groups)) for n in totals.values())])
    if groups and max(totals.values(), default=0) <= len(groups):
        assert all(max(domain_counts(group, by_index)) == 1 for group in groups)
        assert all(tolerance(group, by_index) == group.parity for group in groups)


@given(pods, st.randoms(), sizes, parities)
def test_the_same_pods_make_the_same_groups_in_whatever_order_they_come(pods, order, size, parity):
    shuffled = order.sample(pods, len(pods))
    assert make_groups(shuffled, size, parity) == make_groups(pods, size, parity)


@given(st.integers(2, 24), st.integers(2, 8))
def test_pods_that_all_run_apart_group_with_their_neighbours(count, size):
    groups = make_groups([Place(i, f"node-{i}") for i in range(count)], size, 1)
    assert [m for g in groups for m in g.members] == list(range(count))


@pytest.mark.parametrize(
    ("domains", "parity", "expected"),
    [
        ("abcd", 1, 1),
        ("aabc", 1, 0),
        ("aabc", 2, 1),
        ("abcd", 2, 2),
        ("aabbc", 3, 1),
        ("aabbc", 2, 1),
        ("....", 2, 2),
        ("aaaa", 3, 0),
    ],
)
def test_how_many_domains_a_group_can_lose(domains, parity, expected):
    by_index = {p.index: p.domain for p in places(domains)}
    assert tolerance(Group(tuple(by_index), parity), by_index) == expected


def test_tolerance_is_what_trying_all_losses_says():
    generator = random.Random(7)
    for _ in range(200):
        by_index = {index: generator.choice("abcd") for index in range(generator.randint(2, 7))}
        group = Group(tuple(by_index), generator.randint(1, len(by_index) - 1))
        domains = set(by_index.values())
        survived = [
            n
            for n in range(len(domains) + 1)
            if all(
                sum(d in lost for d in by_index.values()) <= group.parity for lost in itertools.combinations(sorted(domains), n)
            )
        ]
        assert tolerance(group, by_index) == max(survived)


def test_a_pod_whose_domain_nobody_knows_counts_for_itself():
    assert tolerance(Group((0, 1, 2), 1), {}) == 1
