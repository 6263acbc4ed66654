"""The C library against zlib: any length, any alignment, each of its paths, and the way without it."""

from __future__ import annotations

import ctypes
import mmap
import random
import threading
import zlib
from array import array

import pytest
from holdfast_core import fastcopy

needs_library = pytest.mark.skipif(not fastcopy.available(), reason="the C library is not built (no compiler)")
SIZE = 1 << 20
RNG = random.Random(7)
SOURCE = bytearray(RNG.randbytes(SIZE))


def address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


@pytest.fixture(params=[2, 1, 0], ids=["avx512", "sse-or-arm", "tables"])
def level(request):
    library = fastcopy._library
    if library is None:
        pytest.skip("the C library is not built (no compiler)")
    library.holdfast_set_level(request.param)
    yield request.param
    library.holdfast_set_level(2)


@pytest.mark.parametrize("seed", range(4))
def test_checksum_and_copy_agree_with_zlib(level, seed):
    rng, target = random.Random(seed), bytearray(SIZE)
    for _ in range(300):
        n = rng.choice([rng.randrange(0, 700), rng.randrange(0, SIZE - 512)])
        a, b = rng.randrange(0, 256), rng.choice([0, 64, rng.randrange(0, 256)])
        batch = fastcopy.Batch([(b, address(SOURCE) + a, n)])
        assert batch.run(address(target)) == 1
        assert batch.sums[0] == zlib.crc32(SOURCE[a : a + n])
        assert target[b : b + n] == SOURCE[a : a + n]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100_001])
def test_buffers_of_all_kinds_are_summed(size):
    raw = bytes(SOURCE[:size])
    for buffer in (memoryview(raw), memoryview(bytearray(raw))):
        assert fastcopy.crc32(buffer) == zlib.crc32(raw)
        assert fastcopy.crc32(buffer, 99) == zlib.crc32(raw, 99)


both_ways = pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False], ids=["library", "zlib"])


def ragged(sources, target_size):
    """Copies of random sizes, back to back at the destination."""
    rng, work, at = random.Random(3), [], 0
    while at < target_size:
        n = min(rng.randrange(0, 5000), target_size - at)
        work.append((at, sources + at, n))
        at += n
    return work


@both_ways
def test_a_batch_is_shared_by_threads_and_copies_everything_once(monkeypatch, library):
    if not library:
        monkeypatch.setattr(fastcopy, "_library", None)
    target = bytearray(SIZE)
    work = ragged(address(SOURCE), SIZE)
    batch, made = fastcopy.Batch(work), []
    for _ in range(2):
        batch.reset()
        assert not batch.finished()
        threads = [threading.Thread(target=lambda: made.append(batch.run(address(target)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert batch.finished()
        assert target == SOURCE
        target[:] = bytes(SIZE)
    assert sum(made) == 2 * len(work)
    assert list(batch.sums) == [zlib.crc32(SOURCE[at : at + n]) for at, _, n in work]
    assert batch.nbytes == SIZE


@both_ways
def test_a_batch_stops_between_two_copies_and_goes_on_later(monkeypatch, library):
    if not library:
        monkeypatch.setattr(fastcopy, "_library", None)
    target = bytearray(SIZE)
    batch = fastcopy.Batch(ragged(address(SOURCE), SIZE))
    assert batch.run(address(target), array("I", [1])) == 0
    assert not batch.finished()
    assert batch.run(address(target), array("I", [0])) == len(batch)
    assert batch.finished()
    assert target == SOURCE


@both_ways
def test_a_batch_sums_up_what_stands_at_the_destination(monkeypatch, library):
    if not library:
        monkeypatch.setattr(fastcopy, "_library", None)
    target = bytearray(SOURCE[:1000])
    batch = fastcopy.Batch([(0, 0, 600), (600, 0, 400), (1000, 0, 0)])
    batch.run(address(target))
    assert list(batch.sums) == [zlib.crc32(SOURCE[:600]), zlib.crc32(SOURCE[600:1000]), 0]
    assert target == SOURCE[:1000]


@both_ways
def test_several_batches_share_one_array_of_checksums(monkeypatch, library):
    if not library:
        monkeypatch.setattr(fastcopy, "_library", None)
    target, sums, at = bytearray(300), array("I", bytes(12)), address(SOURCE)
    first = fastcopy.Batch([(0, at, 100), (200, at + 200, 100)], sums, [0, 2])
    second = fastcopy.Batch([(100, at + 100, 100)], sums, [1])
    second.run(address(target))
    first.run(address(target))
    assert list(sums) == [zlib.crc32(SOURCE[i : i + 100]) for i in (0, 100, 200)]
    with pytest.raises(ValueError, match="outside"):
        fastcopy.Batch([(0, at, 100)], sums, [3])


@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False])
def test_a_batch_is_worked_off_by_a_team_of_others(monkeypatch, library):
    if not library:
        monkeypatch.setattr(fastcopy, "_library", None)
    target, piece = bytearray(SIZE), SIZE // 64

    def fork(function: int, argument: int) -> None:
        entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        team = [threading.Thread(target=entry, args=(argument,)) for _ in range(3)]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()

    batch = fastcopy.Batch([(at, address(SOURCE) + at, piece) for at in range(0, SIZE, piece)])
    batch.run_in(fork, address(target), array("I", [0]))
    assert batch.finished()
    assert target == SOURCE
    assert [*batch.sums] == [zlib.crc32(SOURCE[at : at + piece]) for at in range(0, SIZE, piece)]


def test_only_addresses_that_were_given_are_touched():
    page = mmap.mmap(-1, mmap.PAGESIZE)  # what lies behind it may not be readable
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    objects = array("Q", [start, start + mmap.PAGESIZE - 1])
    fastcopy.touch(objects, 0, 2)
    fastcopy.touch(objects, 2, 0)
    for first, count in ((0, 3), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="lie outside the 2 given"):
            fastcopy.touch(objects, first, count)
