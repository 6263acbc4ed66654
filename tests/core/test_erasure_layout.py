"""Who holds which stripe of an erasure code, and a whole group that loses members, in pieces as the sidecars do it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest
from holdfast_core.erasure.code import code
from holdfast_core.erasure.layout import ALIGN, Layout
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = [(members, parity) for members in range(2, 9) for parity in range(1, 4) if parity < members]
PIECE = ALIGN + 512  # of the tests: does not divide a block


def test_layout_and_groups_do_without_numpy():
    script = "import sys, holdfast_core.erasure.layout, holdfast_core.erasure.groups; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


# The layout


@pytest.mark.parametrize(("members", "parity"), SHAPES)
def test_each_stripe_spreads_over_all_members(members, parity):
    layout = Layout.of(members, parity, [1] * members)
    for stripe in range(members):
        holders, contributors = layout.holders(stripe), layout.contributors(stripe)
        assert (len(holders), len(contributors)) == (parity, layout.data)
        assert sorted(holders + contributors) == list(range(members))
        assert [layout.stripe_of(member, position) for position, member in enumerate(contributors)] == [stripe] * layout.data


@pytest.mark.parametrize(("members", "parity"), SHAPES)
def test_a_member_has_one_part_in_each_stripe(members, parity):
    layout = Layout.of(members, parity, [1] * members)
    for member in range(members):
        held = layout.stripes_held(member)
        assert [layout.holders(stripe).index(member) for stripe in held] == list(range(parity))
        assert sorted([*held, *(layout.stripe_of(member, block) for block in range(layout.data))]) == list(range(members))


@given(st.sampled_from(SHAPES), st.data())
def test_blocks_are_as_small_as_they_can_be_and_cover_each_image(shape, choice):
    members, parity = shape
    lengths = choice.draw(st.lists(st.integers(0, 40 * ALIGN), min_size=members, max_size=members))
    layout = Layout.of(members, parity, lengths)
    assert layout.block % ALIGN == 0
    assert layout.block == ALIGN or layout.data * (layout.block - ALIGN) < max(lengths) <= layout.data * layout.block
    assert layout.parity_bytes == parity * layout.block
    for length in lengths:
        spans = [layout.span(block, length) for block in range(layout.data)]
        assert [i for start, end in spans for i in (start, end)] == sorted(i for span in spans for i in span)
        assert sum(end - start for start, end in spans) == length


def test_a_group_of_two_keeps_whole_copies():
    layout = Layout.of(2, 1, [3 * ALIGN, 10])
    assert layout.data == 1
    assert layout.parity_bytes == 3 * ALIGN
    assert [layout.contributors(stripe) for stripe in layout.stripes_held(0)] == [(1,)]


@pytest.mark.parametrize(
    ("members", "parity", "lengths"),
    [(1, 1, [1]), (2, 2, [1, 1]), (3, 0, [1] * 3), (256, 1, [1] * 256), (3, 1, [1]), (2, 1, [1, -1])],
)
def test_a_group_that_cannot_be_is_refused(members, parity, lengths):
    with pytest.raises(ValueError, match="members"):
        Layout.of(members, parity, lengths)


def test_a_block_that_is_not_aligned_is_refused():
    for block in (0, -ALIGN, ALIGN + 1):
        with pytest.raises(ValueError, match="multiple"):
            Layout(3, 1, block)


def brute_decodable(layout: Layout, data: set[int], parity: set[int], wanted: set[int]) -> bool:
    """Stripe by stripe, over every part there is."""
    for stripe in range(layout.members):
        parts = [("d", m) for m in layout.contributors(stripe)] + [("p", m) for m in layout.holders(stripe)]
        there = [part for part in parts if part[1] in (data if part[0] == "d" else parity)]
        if any(("d", m) in parts for m in wanted - data) and len(there) < layout.data:
            return False
    return True


subsets = st.sets(st.integers(0, 7))


@given(st.sampled_from(SHAPES), subsets, subsets, subsets)
@settings(max_examples=500)
def test_decodable_is_what_counting_parts_says_and_sources_agree(shape, data, parity, wanted):
    members, _ = shape
    everyone = set(range(members))
    data, parity, wanted = data & everyone, parity & everyone, wanted & everyone
    layout = Layout.of(*shape, [1] * members)
    expected = brute_decodable(layout, data, parity, wanted)
    assert layout.decodable(data, parity, wanted) == expected
    assert expected == all(has_sources(layout, data, parity, member) for member in wanted - data)


def has_sources(layout: Layout, data: set[int], parity: set[int], member: int) -> bool:
    try:
        for block in range(layout.data):
            found = layout.sources(data, parity, member, block)
            stripe = layout.stripe_of(member, block)
            assert len(found) == layout.data
            assert [s.position for s in found] == sorted({s.position for s in found} - {block})
            assert sum(s.kind == "data" for s in found) == len(data & set(layout.contributors(stripe)))
            for source in found:
                if source.kind == "data":
                    assert source.member in data
                    assert source.position == source.index
                    assert layout.contributors(stripe)[source.index] == source.member
                else:
                    assert source.member in parity
                    assert source.position == layout.data + source.index
                    assert layout.holders(stripe)[source.index] == source.member
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("members", "parity"), SHAPES)
def test_up_to_m_members_lost_is_decodable_and_one_more_is_not(members, parity):
    layout = Layout.of(members, parity, [1] * members)
    everyone = set(range(members))
    for lost in itertools.chain.from_iterable(itertools.combinations(everyone, n) for n in range(parity + 2)):
        left = everyone - set(lost)
        assert layout.decodable(left, left, lost) == (len(lost) <= parity)
        if len(lost) > parity:
            with pytest.raises(ValueError, match="parts left"):
                [layout.sources(left, left, lost[0], block) for block in range(layout.data)]


@pytest.mark.parametrize(("members", "parity"), SHAPES)
def test_a_rebuild_reads_about_as_much_from_each_survivor(members, parity):
    layout = Layout.of(members, parity, [1] * members)
    for lost in range(members):
        left = [m for m in range(members) if m != lost]
        read = [s.member for block in range(layout.data) for s in layout.sources(left, left, lost, block)]
        counts = [read.count(member) for member in left]
        assert max(counts) - min(counts) <= 1


def test_a_corrupt_image_is_rebuilt_without_reading_it():
    layout = Layout.of(4, 2, [1] * 4)
    for block in range(layout.data):
        assert 1 not in {source.member for source in layout.sources(range(4), range(4), 1, block)}


# A whole group, in pieces, as the sidecars do it


def encoded(layout: Layout, images: list[bytes], member: int) -> bytes:
    """The rows that a member holds for the others."""
    stored = bytearray(b"?" * layout.parity_bytes)
    for row, stripe in enumerate(layout.stripes_held(member)):
        contributors = [(images[m], layout.span(d, len(images[m]))) for d, m in enumerate(layout.contributors(stripe))]
        start, end = layout.row_span(row)
        for at in range(0, layout.block, PIECE):
            pieces = [memoryview(image)[a + at : min(a + at + PIECE, b)] for image, (a, b) in contributors]
            out = memoryview(stored)[start + at : min(start + at + PIECE, end)]
            code(layout.data, layout.parity).encode_row(pieces, row, out)
    return bytes(stored)


def rebuilt(layout: Layout, images: dict[int, bytes], parities: dict[int, bytes], member: int, length: int) -> bytes:
    """A lost image out of what is left."""
    image = bytearray(b"?" * length)
    for block in range(layout.data):
        sources = layout.sources(images, parities, member, block)
        start, end = layout.span(block, length)
        for at in range(start, end, PIECE):
            offset = at - start
            have = {}
            for source in sources:
                stored = images[source.member] if source.kind == "data" else parities[source.member]
                a, b = layout.span(source.index, len(stored)) if source.kind == "data" else layout.row_span(source.index)
                have[source.position] = memoryview(stored)[a + offset : min(a + offset + PIECE, b)]
            code(layout.data, layout.parity).rebuild(have, block, memoryview(image)[at : min(at + PIECE, end)])
    return bytes(image)


@st.composite
def groups_of_images(draw):
    members, parity = draw(st.sampled_from(SHAPES))
    longest = draw(st.sampled_from([0, 1, ALIGN, 3 * ALIGN + 17, 9 * ALIGN]))
    lengths = draw(st.lists(st.one_of(st.just(longest), st.integers(0, longest)), min_size=members, max_size=members))
    seed = draw(st.integers(0, 2**32))
    return members, parity, [random.Random(seed + member).randbytes(n) for member, n in enumerate(lengths)]


@given(groups_of_images(), st.randoms())
@settings(deadline=None)
def test_every_loss_up_to_m_is_rebuilt_byte_for_byte(group, order):
    members, parity, images = group
    layout = Layout.of(members, parity, [len(image) for image in images])
    parities = {member: encoded(layout, images, member) for member in range(members)}
    losses = [lost for n in range(1, parity + 1) for lost in itertools.combinations(range(members), n)]
    for lost in order.sample(losses, min(len(losses), 12)):
        left = {member: image for member, image in enumerate(images) if member not in lost}
        rows = {member: parities[member] for member in left}
        for member in order.sample(lost, len(lost)):
            assert rebuilt(layout, left, rows, member, len(images[member])) == images[member]
            left[member] = images[member]  # what was rebuilt helps with the next


@pytest.mark.parametrize(("members", "parity"), SHAPES)
def test_every_loss_pattern_of_images_of_unequal_size(members, parity):
    images = [
        random.Random(member).randbytes(ALIGN * (1 + member) + 5 * member if member != 1 else 0) for member in range(members)
    ]
    layout = Layout.of(members, parity, [len(image) for image in images])
    parities = {member: encoded(layout, images, member) for member in range(members)}
    for lost in itertools.chain.from_iterable(itertools.combinations(range(members), n) for n in range(1, parity + 1)):
        left = {member: image for member, image in enumerate(images) if member not in lost}
        rows = {member: parities[member] for member in left}
        assert all(rebuilt(layout, left, rows, member, len(images[member])) == images[member] for member in lost)


def test_a_member_that_lost_its_parity_only_rebuilds_it_from_the_images():
    images = [random.Random(member).randbytes(5 * ALIGN) for member in range(4)]
    layout = Layout.of(4, 2, [5 * ALIGN] * 4)
    before = encoded(layout, images, 2)
    out = bytearray(layout.block)
    stripe = layout.stripes_held(2)[1]
    blocks = [memoryview(images[m])[slice(*layout.span(d, len(images[m])))] for d, m in enumerate(layout.contributors(stripe))]
    code(layout.data, 2).rebuild(dict(enumerate(blocks)), layout.data + 1, memoryview(out))
    assert out == before[slice(*layout.row_span(1))]
