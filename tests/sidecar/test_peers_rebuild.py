"""From a captured snapshot to parity in peers' memory, and back after its pod died: the bytes are the same."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import zlib
from dataclasses import replace

import pytest
from holdfast_core import arena
from holdfast_core.manifest import CorruptShard
from holdfast_core.timeline import Copy
from holdfast_sidecar.peers import Fault, PeerError
from holdfast_sidecar.peers.wire import PIECE

from .conftest import MakePods
from .harness import eventually
from .peer_pods import PeerJob


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_rebuilt_image_is_the_captured_one_after_its_holder_died(make_pods: MakePods, encrypted: bool) -> None:
    job = make_pods(4, encrypted=encrypted)
    copy = job.seal(7, [13_000_000, 12_900_000, 100_000, 1_700_001])
    before = job.images(copy)
    received = job.protect(copy)
    assert all(n > 0 for n in received)
    for lost in range(4):
        job.lose(lost)
        job.rebuild(copy, lost)
        assert job.pods[lost].image(lost, copy) == before[lost]
        assert job.pods[lost].view(lost, copy).verify().step == 7
        job.protect(copy)


PATTERNS = [(4, 1, lost) for lost in itertools.combinations(range(4), 1)]
PATTERNS += [(5, 2, lost) for n in (1, 2) for lost in itertools.combinations(range(5), n)]
PATTERNS += [(2, 1, (0,)), (2, 1, (1,)), (3, 2, (0, 2))]


@pytest.mark.parametrize(("pods", "m", "lost"), PATTERNS)
def test_every_loss_within_the_parity_is_made_good(make_pods: MakePods, pods: int, m: int, lost: tuple[int, ...]) -> None:
    job = make_pods(pods, encrypted=False)
    sizes = [2_700_000, 5_100_000, 4_900_001, 4_097, 3_350_000][:pods]
    copy = job.seal(3, sizes)
    before = job.images(copy)
    job.protect(copy, m=m)
    job.lose(*lost)
    job.rebuild(copy, *lost)
    assert job.images(copy) == before


def test_each_rank_of_a_pod_is_protected_by_the_same_ranks_of_the_others(make_pods: MakePods) -> None:
    job = make_pods(3, processes=2)
    copy = job.seal(3, [2_000_000, 500_000, 1_900_000, 600_000, 2_100_000, 700_000])
    before = job.images(copy)
    job.protect(copy, (0, 2, 4))
    job.protect(copy, (1, 3, 5))
    job.lose(1)
    job.rebuild(copy, 2, 3)
    assert job.images(copy) == before


def test_parity_that_is_whole_is_not_built_again(make_pods: MakePods) -> None:
    job = make_pods(3, encrypted=False)
    copy = job.seal(3, [100_000] * 3)
    job.protect(copy)
    assert job.protect(copy) == [0, 0, 0]
    whole = [pod.peers.parity.whole() for pod in job.pods]
    assert all(len(ranks[i]) == 1 and ranks[i][0].group == (0, 1, 2) for i, ranks in enumerate(whole))


def test_the_network_carries_one_snapshot_and_memory_holds_its_share_of_one(make_pods: MakePods) -> None:
    job = make_pods(5, encrypted=False)
    size = 8_000_000
    received = job.protect(job.seal(3, [size] * 5))
    assert all(size <= n < 1.01 * size for n in received)
    assert all(size / 4 <= pod.peers.parity.total_bytes < 1.05 * size / 4 for pod in job.pods)


def test_what_cannot_be_rebuilt_says_what_is_left(make_pods: MakePods) -> None:
    job = make_pods(4, encrypted=False)
    copy = job.seal(3, [1_000_000] * 4)
    job.protect(copy)
    job.lose(1, 2)
    with pytest.raises(PeerError, match=r"rank 1, step 3 .* snapshots of ranks 0, 3, parity with ranks 0, 3, 3 parts") as error:
        job.rebuild(copy, 1)
    assert error.value.kind is Fault.LACKS
    with pytest.raises(PeerError, match="no pod that answered holds parity of step 9"):
        job.rebuild(type(copy)(9, 1), 1)
    assert job.pods[1].arenas.sealed() == {1: ()}


def test_a_pod_whose_memory_is_corrupt_is_done_without_where_there_is_parity_to_spare(make_pods: MakePods) -> None:
    job = make_pods(5, encrypted=False)
    copy = job.seal(3, [3_000_000] * 5)
    before = job.images(copy)
    job.protect(copy, m=2)
    job.lose(4)
    spoil(job, 2, copy)
    job.rebuild(copy, 4)
    assert job.pods[4].image(4, copy) == before[4]
    assert job.pods[2].corrupt


def test_a_pod_whose_memory_is_corrupt_is_named_where_there_is_not(make_pods: MakePods) -> None:
    job, copy, _ = one_lost(make_pods, 4, 0, size=3_000_000)
    spoil(job, 2, copy)
    with pytest.raises(PeerError, match=r"pod gpt-p2.*do not match their checksum in memory.*replace its node"):
        job.rebuild(copy, 0)
    assert job.pods[0].arenas.sealed() == {0: ()}


def test_parity_that_rots_is_found_when_it_is_read(make_pods: MakePods) -> None:
    job, copy, _ = one_lost(make_pods, 3, 0, size=3_000_000)
    job.parity(1, copy).row(0)[1_400_000] ^= 4
    with pytest.raises(PeerError, match=r"pod gpt-p1.*in memory"):
        job.rebuild(copy, 0)
    assert not job.pods[1].peers.parity.whole()


def test_a_survivor_whose_sidecar_is_being_restarted_is_waited_for(make_pods: MakePods) -> None:
    """What it holds is intact, and it is back in a second: giving its step up would lose it for the whole job."""
    job, copy, image = one_lost(make_pods, 3, 2, size=1_000_000, encrypted=True)
    job.pods[1].peers.close()
    back = threading.Timer(1.0, job.pods[1].open)
    back.start()
    job.rebuild(copy, 2)
    back.join()
    assert job.pods[2].image(2, copy) == image


def test_a_survivor_that_stays_away_is_not_waited_for_for_ever(make_pods: MakePods) -> None:
    job, copy, _ = one_lost(make_pods, 2, 0)
    job.pods[0].peers.patience = 0.6
    job.pods[1].peers.close()
    with pytest.raises(PeerError, match="no connection") as error:
        job.rebuild(copy, 0)
    assert error.value.kind is Fault.UNREACHABLE
    assert job.pods[0].arenas.sealed() == {0: ()}


def test_the_next_attempt_ends_the_wait(make_pods: MakePods, caplog: pytest.LogCaptureFixture) -> None:
    job, copy, _ = one_lost(make_pods, 2, 0)
    job.pods[1].peers.close()

    caplog.set_level(logging.INFO)

    async def cancelled_while_it_waits() -> None:
        rebuild = asyncio.create_task(job.pods[0].peers.rebuild(0, copy, job.places, job.attempt))
        await asyncio.to_thread(eventually, lambda: "tried again" in caplog.text)
        assert not rebuild.done()
        rebuild.cancel()
        await asyncio.wait([rebuild])

    asyncio.run(cancelled_while_it_waits())
    eventually(lambda: not any(t.name == "rebuild-0" for t in threading.enumerate()), what="the thread ends")


def test_a_rebuild_tells_what_it_has_brought(make_pods: MakePods) -> None:
    job, copy, image = one_lost(make_pods, 2, 0)
    heard: list[int] = []
    asyncio.run(job.pods[0].peers.rebuild(0, copy, job.places, job.attempt, heard.append))
    assert sum(heard) == len(image)


@pytest.mark.parametrize("first", ["all", "pairs"])
def test_a_step_that_is_held_in_two_groupings_is_rebuilt_from_one_of_them(make_pods: MakePods, first: str) -> None:
    """After pods moved it is protected anew, in other groups; until that is done both are held."""
    job = make_pods(4, encrypted=False)
    copy = job.seal(3, [1_000_000] * 4)
    before = job.images(copy)
    groupings = [[(0, 1, 2, 3)], [(0, 1), (2, 3)]]
    for grouping in groupings if first == "all" else reversed(groupings):
        for group in grouping:
            job.protect(copy, group=group)
    assert all(len(held) == 2 for pod in job.pods for held in pod.peers.parity.whole().values())
    for lost in (1, 2):
        job.lose(lost)
        job.rebuild(copy, lost)
        assert job.pods[lost].image(lost, copy) == before[lost]
        assert not any(pod.corrupt for pod in job.pods)


def test_a_rebuild_that_was_fenced_meanwhile_seals_nothing(make_pods: MakePods) -> None:
    job, copy, _ = one_lost(make_pods, 2, 0)
    job.pods[0].arenas.fence(3)
    with pytest.raises(arena.ArenaError, match="fenced"):
        job.rebuild(copy, 0)
    assert job.pods[0].arenas.sealed() == {0: ()}


def one_lost(
    make_pods: MakePods, pods: int, index: int, *, size: int = 300_000, encrypted: bool = False
) -> tuple[PeerJob, Copy, bytes]:
    """A job with a protected step, after a pod was replaced; and that pod's image, which is to be brought back."""
    job = make_pods(pods, encrypted=encrypted)
    copy = job.seal(3, [size] * pods)
    image = job.images(copy)[index]
    job.protect(copy)
    job.lose(index)
    return job, copy, image


def spoil(job: PeerJob, rank: int, copy: object) -> None:
    """Some bits of a rank's snapshot flip in memory, wherever one looks."""
    data = job.pods[rank].view(rank, copy).data()  # type: ignore[arg-type]
    for at in range(1000, len(data), 100_000):
        data[at] ^= 1


# --- a peer that believes its own lies: its checksums agree with the wrong bytes


@pytest.mark.parametrize(("at", "found"), [(1_000, "checksum"), (-100, "the manifest of step 3 came back wrong")])
def test_wrong_parity_with_right_checksums_becomes_no_snapshot(make_pods: MakePods, at: int, found: str) -> None:
    job, copy, image = one_lost(make_pods, 2, 0)
    lie(job, copy, at % len(image))
    with pytest.raises(CorruptShard, match=found):
        job.rebuild(copy, 0)
    assert job.pods[0].arenas.sealed() == {0: ()}


def test_parity_of_another_step_under_a_wrong_name_becomes_no_snapshot(make_pods: MakePods) -> None:
    job, copy, _ = one_lost(make_pods, 2, 0)
    file = job.parity(1, copy)
    assert file.code is not None
    later = Copy(4, copy.attempt)
    file.code = replace(file.code, copy=later)
    with pytest.raises(CorruptShard, match="what came back is not step 4 of this rank"):
        job.rebuild(later, 0)
    assert job.pods[0].arenas.sealed() == {0: ()}


def lie(job: PeerJob, copy: Copy, at: int) -> None:
    """Pod 1's parity is wrong in one place, and was so when its checksums were made."""
    file = job.parity(1, copy)
    row = file.row(0)
    row[at] ^= 1
    piece = at // PIECE
    file.set_sum(0, piece, zlib.crc32(row[piece * PIECE : (piece + 1) * PIECE]))
