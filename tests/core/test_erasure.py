"""Erasure codes: what lies where, parity and rebuilding, against a slow second implementation that is easy to believe."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from holdfast_core.erasure import isal
from holdfast_core.erasure.code import code
from holdfast_core.erasure.layout import ALIGN, MOST_MEMBERS
from hypothesis import given
from hypothesis import strategies as st

SHAPES = [(members, parity) for members in range(2, 9) for parity in range(1, 4) if parity < members]
CODES = sorted({(members - parity, parity) for members, parity in SHAPES})
PIECE = ALIGN + 512  # of the tests: does not divide a block


# The second implementation: bytes one by one, powers and logarithms in GF(2^8) with x^8 + x^4 + x^3 + x^2 + 1.

POWER = [1]
for _ in range(254):
    POWER.append((POWER[-1] << 1) ^ (0x11D if POWER[-1] & 0x80 else 0))
LOG = {value: exponent for exponent, value in enumerate(POWER)}


def times(a: int, b: int) -> int:
    return POWER[(LOG[a] + LOG[b]) % 255] if a and b else 0


def coefficient(data: int, parity: int, row: int, position: int) -> int:
    """One for XOR; else a Cauchy matrix: one over (row's number + column's number)."""
    return 1 if parity == 1 else POWER[-LOG[(data + row) ^ position] % 255]


def naive_row(data: int, parity: int, row: int, pieces: list[bytes], nbytes: int) -> bytes:
    total = 0
    for position, piece in enumerate(pieces):
        factor = coefficient(data, parity, row, position)
        product = piece[:nbytes].translate(bytes(times(factor, value) for value in range(256))).ljust(nbytes, b"\0")
        total ^= int.from_bytes(product, "little")
    return total.to_bytes(nbytes, "little")


def views(pieces: list[bytes]) -> list[memoryview]:
    return [memoryview(piece) for piece in pieces]


@st.composite
def stripes(draw):
    """A code, its data pieces (some cut short, some longer than they count), the bytes that count."""
    data, parity = draw(st.sampled_from(CODES))
    nbytes = draw(st.integers(0, 300))
    lengths = st.one_of(st.just(nbytes), st.integers(0, nbytes + 9))
    return data, parity, [draw(st.binary(min_size=n, max_size=n)) for n in draw(st.tuples(*[lengths] * data))], nbytes


@given(stripes())
def test_each_row_is_the_sum_that_the_slow_way_finds(stripe):
    data, parity, pieces, nbytes = stripe
    for row in range(parity):
        out = bytearray(b"?" * nbytes)
        code(data, parity).encode_row(views(pieces), row, memoryview(out))
        assert out == naive_row(data, parity, row, pieces, nbytes)


@given(stripes(), st.randoms())
def test_pieces_may_be_added_one_by_one_in_any_order(stripe, order):
    data, parity, pieces, nbytes = stripe
    for row in range(parity):
        out = bytearray(nbytes)
        for position in order.sample(range(data), data):
            code(data, parity).add(memoryview(out), row, position, memoryview(pieces[position]))
        assert out == naive_row(data, parity, row, pieces, nbytes)


@given(stripes(), st.data())
def test_a_change_is_added_to_the_parity_instead_of_encoding_anew(stripe, choice):
    data, parity, pieces, nbytes = stripe
    position = choice.draw(st.integers(0, data - 1))
    old = pieces[position][:nbytes]
    new = choice.draw(st.binary(min_size=len(old), max_size=len(old)))
    change = bytes(a ^ b for a, b in zip(old, new, strict=True))
    for row in range(parity):
        out = bytearray(naive_row(data, parity, row, pieces, nbytes))
        code(data, parity).add(memoryview(out), row, position, memoryview(change))
        changed = [new if p == position else piece for p, piece in enumerate(pieces)]
        assert out == naive_row(data, parity, row, changed, nbytes)


@pytest.mark.parametrize(("data", "parity"), CODES)
def test_any_k_parts_of_a_codeword_give_every_other(data, parity):
    pieces = [random.Random(position).randbytes(100 - 7 * position) for position in range(data)]
    word = [*pieces, *(naive_row(data, parity, row, pieces, 100) for row in range(parity))]
    for have in itertools.combinations(range(data + parity), data):
        for want in set(range(data + parity)) - set(have):
            out = bytearray(b"?" * 100)
            code(data, parity).rebuild({p: memoryview(word[p]) for p in have}, want, memoryview(out))
            assert out == word[want].ljust(100, b"\0")


@pytest.mark.parametrize("nbytes", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 4095, 65537])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_no_length_and_no_address_writes_beside_its_target(nbytes, offset):
    pieces = [random.Random(p).randbytes(offset + nbytes)[offset:] for p in range(3)]
    for parity in (1, 2):
        area = bytearray(b"?" * (offset + nbytes + 64))
        inner = memoryview(area)[offset : offset + nbytes]
        sources = [memoryview(bytes(offset) + piece)[offset:] for piece in pieces]
        code(3, parity).encode_row(sources, parity - 1, inner)
        assert inner == naive_row(3, parity, parity - 1, pieces, nbytes)
        code(3, parity).add(inner, parity - 1, 0, sources[0])
        assert inner == naive_row(3, parity, parity - 1, [b"", *pieces[1:]], nbytes)
        assert area[:offset] == b"?" * offset
        assert area[offset + nbytes :] == b"?" * 64


def test_the_largest_group_still_has_a_code():
    pieces = [bytes([position]) * 64 for position in range(MOST_MEMBERS - 3)]
    out = bytearray(64)
    code(len(pieces), 3).encode_row(views(pieces), 2, memoryview(out))
    assert out == naive_row(len(pieces), 3, 2, pieces, 64)


def test_threads_share_a_code():
    shared = code(5, 3)
    pieces = [random.Random(p).randbytes(50_000) for p in range(5)]
    rows = [naive_row(5, 3, row, pieces, 50_000) for row in range(3)]
    word = [*pieces, *rows]

    def rebuilt(lost: tuple[int, ...]) -> bool:
        out = bytearray(50_000)
        have = {p: memoryview(word[p]) for p in range(8) if p not in lost}
        shared.rebuild(have, lost[0], memoryview(out))
        return out == word[lost[0]]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(rebuilt, itertools.permutations(range(8), 3)))


@pytest.mark.parametrize("parity", [1, 2])
@pytest.mark.parametrize(
    "use",
    [
        lambda c, p, out: c.encode_row([p, p], 0, out),
        lambda c, p, out: c.encode_row([p, p, p], c.parity, out),
        lambda c, p, out: c.encode_row([p, p, p], -1, out),
        lambda c, p, out: c.add(out, 0, 3, p),
        lambda c, p, out: c.add(out, 0, -1, p),
        lambda c, p, out: c.add(out, c.parity, 0, p),
        lambda c, p, out: c.rebuild({0: p, 1: p}, 2, out),
        lambda c, p, out: c.rebuild({0: p, 1: p, 2: p, 3: p}, 2, out),
        lambda c, p, out: c.rebuild({0: p, 1: p, 2: p}, 0, out),
        lambda c, p, out: c.rebuild({0: p, 1: p, 9: p}, 2, out),
        lambda c, p, out: c.rebuild({0: p, 1: p, 2: p}, 9, out),
    ],
)
def test_what_does_not_fit_the_code_is_refused(parity, use):
    out = memoryview(bytearray(b"?" * 8))
    with pytest.raises(ValueError, match="positions"):
        use(code(3, parity), memoryview(b"12345678"), out)
    assert bytes(out) == b"?" * 8


@pytest.mark.parametrize(("data", "parity"), [(0, 1), (1, 0), (-1, 2), (MOST_MEMBERS, 1), (MOST_MEMBERS - 1, 2)])
def test_there_is_no_code_without_data_or_parity_or_beyond_the_field(data, parity):
    with pytest.raises(ValueError, match="no code"):
        code(data, parity)


def test_a_target_that_may_not_be_written_is_refused():
    for parity in (1, 2):
        with pytest.raises(ValueError, match="read-only"):
            code(1, parity).encode_row([memoryview(b"1234")], 0, memoryview(b"abcd"))
        with pytest.raises(ValueError, match="read-only"):
            code(1, parity).add(memoryview(b"abcd"), 0, 0, memoryview(b"1234"))


def test_without_isa_l_xor_works_and_more_parity_says_what_to_install(monkeypatch):
    isal._library.cache_clear()
    code.cache_clear()
    monkeypatch.setattr(isal, "_candidates", lambda: iter(["no-such-library.so"]))
    out = bytearray(2)
    code(2, 1).encode_row([memoryview(b"ab"), memoryview(b"ba")], 0, memoryview(out))
    assert out == b"\3\3"
    with pytest.raises(isal.NoLibrary, match="pyeclib"):
        code(2, 2)
