"""From where each rank gets its part: the freshest step that all can have, at the least cost, or the next level."""

from __future__ import annotations

from itertools import combinations

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.messages import Inventory, Member, Parity, Source, StoreInventory
from holdfast_core.protection import Holdings, faults, groups_of, rank_groups, watched
from holdfast_core.recovery import choose, explain
from holdfast_core.timeline import Copy, Resume

STEP, OLD = Copy(20, 3), Copy(10, 3)


def members(count: int, processes: int = 1, domains: str = "") -> list[Member]:
    places = domains or "abcdefgh"[:count]
    return [Member(i, f"p{i}", "h", 1, i * processes, processes, places[i]) for i in range(count)]


def holdings(
    count: int, parity: int, lost: tuple[int, ...] = (), processes: int = 1, size: int = 4, copy: Copy = STEP
) -> Holdings:
    """Pods that protect a step in full, less those that are lost."""
    pods = members(count, processes)
    codewords = rank_groups(groups_of(pods, PeersConfig(size, parity)), pods)
    alive = [r for m in pods if m.index not in lost for r in range(m.first_rank, m.first_rank + processes)]
    held = {r: (Parity(copy, *codewords[r]),) for r in alive if r in codewords}
    return Holdings({r: (copy,) for r in alive}, held)


def stores(**held: Copy) -> Inventory:
    return Inventory(tuple(StoreInventory(name, (copy,)) for name, copy in held.items()))


@pytest.mark.parametrize(("count", "parity"), [(2, 1), (3, 1), (4, 1), (4, 2), (5, 2), (6, 1), (7, 2), (8, 3)])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_loss_pattern_has_a_plan_or_falls_to_the_next_level(count, parity, processes):
    """Against the rule in one line: a step is in RAM if no group lost more pods than it has parity."""
    world = count * processes
    groups = groups_of(members(count), PeersConfig(4, parity))
    for number in range(count + 1):
        for lost in combinations(range(count), number):
            bearable = all(len(set(g.members) & set(lost)) <= g.parity for g in groups)
            found = choose(holdings(count, parity, lost, processes), stores(pvc=OLD), world, ())
            assert found is not None
            if not lost:
                assert (found.source, found.levels) == (Source("memory", 20, 3), {})
            elif bearable:
                gone = {r for i in lost for r in range(i * processes, (i + 1) * processes)}
                assert (found.source, found.levels) == (Source("peers", 20, 3), dict.fromkeys(gone, "peers"))
            else:
                assert found.source == Source("pvc", 10, 3)
                assert found.levels == dict.fromkeys(range(world), "pvc")


def test_levels_may_be_mixed_if_they_hold_the_same_copy():
    two_of_one_group = holdings(6, 1, lost=(0, 1, 4), size=3)
    found = choose(two_of_one_group, stores(pvc=OLD, s3=STEP), 6, ())
    assert found.source == Source("s3", 20, 3), "the slowest level in use"
    assert found.levels == {0: "s3", 1: "s3", 4: "peers"}
    parts = "rank 4 rebuilt from peers' RAM, ranks 0, 1 from s3, the others from memory"
    assert explain(found, None) == f"step 20 is the freshest that every rank can have: {parts}"


def test_of_two_stores_with_the_step_the_first_one_serves_and_the_second_where_it_is_banned():
    nothing = Holdings({}, {})
    both = stores(pvc=STEP, s3=STEP)
    assert choose(nothing, both, 2, ()).levels == {0: "pvc", 1: "pvc"}
    bad_file = [Source("pvc", 20, 3, rank=1)]
    assert choose(nothing, both, 2, (), bad_file).levels == {0: "pvc", 1: "s3"}
    assert choose(nothing, both, 2, (), [Source("pvc", 20, 3)]).levels == {0: "s3", 1: "s3"}


def test_a_damaged_snapshot_in_memory_is_rebuilt_from_the_peers():
    found = choose(holdings(4, 1), None, 4, (), [Source("memory", 20, 3, rank=2)])
    assert (found.source.level, found.levels) == ("peers", {2: "peers"})
    assert choose(holdings(4, 1), None, 4, (), [Source("memory", 20, 3, rank=2), Source("peers", 20, 3, rank=2)]) is None


def test_the_newest_step_of_any_rank_is_no_source():
    held = Holdings({0: (OLD, STEP), 1: (OLD,)}, {})
    assert choose(held, None, 2, ()).source == Source("memory", 10, 3)


def test_what_a_later_attempt_made_void_is_no_source():
    assert choose(holdings(3, 1, lost=(0,)), stores(pvc=OLD), 3, (Resume(4, 12),)).source == Source("pvc", 10, 3)


def test_parity_without_the_survivors_own_snapshots_rebuilds_nothing():
    whole = holdings(4, 1, lost=(0,))
    without = Holdings({r: c for r, c in whole.sealed.items() if r != 1} | {1: (OLD,)}, whole.parity)
    assert choose(without, None, 4, ()) is None


def test_parity_of_different_groupings_is_not_mixed():
    """Pod 0 is lost; 1 and 2 have regrouped already, 3 has not: neither grouping is enough for rank 0."""
    old, new = Parity(STEP, (0, 1, 2, 3), 1), Parity(STEP, (1, 2, 3), 1)
    held = Holdings({r: (STEP,) for r in (1, 2, 3)}, {1: (new,), 2: (new,), 3: (old,)})
    assert choose(held, None, 4, ()) is None
    assert choose(Holdings(held.sealed, {r: (old, new) for r in (1, 2, 3)}), None, 4, ()).source.level == "peers"


def test_nothing_at_all_starts_from_scratch_and_says_so():
    assert choose(Holdings({}, {}), None, 2, ()) is None
    assert "from scratch" in explain(None, None)


# --- what can be lost now


@pytest.mark.parametrize(
    ("count", "parity", "size", "domains", "expected"),
    [
        (4, 1, 4, "abcd", 1),
        (4, 2, 4, "abcd", 2),
        (4, 1, 4, "aabc", 0),
        (4, 2, 4, "aabc", 1),
        (6, 1, 3, "abcabc", 1),
        (2, 1, 4, "ab", 1),
        (1, 1, 4, "a", 0),
    ],
)
def test_how_many_nodes_may_be_lost(count, parity, size, domains, expected):
    pods = members(count, 1, domains)
    codewords = rank_groups(groups_of(pods, PeersConfig(size, parity)), pods)
    held = Holdings({r: (STEP,) for r in range(count)}, {r: (Parity(STEP, *c),) for r, c in codewords.items()})
    seen = faults(held, STEP, {r: r for r in range(count)}, {m.index: m.domain for m in pods})
    assert seen == expected


def test_a_group_that_lacks_one_pods_parity_protects_nobody_yet():
    held = holdings(4, 1)
    partial = Holdings(held.sealed, {r: p for r, p in held.parity.items() if r != 3})
    assert faults(partial, STEP, {r: r for r in range(4)}, {}) == 0


def test_a_job_can_lose_as_many_as_its_weakest_group():
    strong, weak = Parity(STEP, (0, 1, 2, 3), 2), Parity(STEP, (4, 5, 6, 7), 1)
    held = Holdings({r: (STEP,) for r in range(8)}, {r: (strong if r < 4 else weak,) for r in range(8)})
    assert faults(held, STEP, {r: r for r in range(8)}, {}) == 1
    unfinished = Holdings(held.sealed, {r: held.parity[r] for r in range(4)})
    assert faults(unfinished, STEP, {r: r for r in range(8)}, {}) == 0


def test_each_pod_watches_its_group_or_its_neighbours():
    pods = members(8)
    groups = groups_of(pods, PeersConfig(4, 1))
    assert [m.index for m in watched(1, pods, groups)] == [0, 2, 3]
    assert [m.index for m in watched(1, pods, ())] == [2, 3, 7, 0]
    assert watched(0, members(1), ()) == ()
