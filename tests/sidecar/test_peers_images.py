"""What counts of an image: tensors and manifest, not what lies between. A step that a store gave back is the same image."""

from __future__ import annotations

import dataclasses

import pytest
from holdfast_core import arena, manifest
from holdfast_core.manifest import Entry, SlotManifest
from holdfast_core.messages import Parity
from holdfast_core.timeline import Copy

from .conftest import MakePods
from .images import content
from .peer_pods import PeerJob, PeerPod

SIZE = 3_000_001
FROZEN = 2_000_000
Stored = tuple[SlotManifest, dict[str, bytes]]


def store(job: PeerJob, copy: Copy) -> dict[int, Stored]:
    """What a store has of a step: the manifest, and each tensor's bytes."""
    found = {}
    for rank in range(job.world):
        view = job.pod_of(rank).view(rank, copy)
        about, data = view.manifest(), view.data()
        found[rank] = about, {e.key: bytes(manifest.entry_data(data, e)) for e in about.entries}
    return found


def fetch(pod: PeerPod, rank: int, copy: Copy, stored: Stored) -> None:
    """As a preparation does."""
    about, tensors = stored
    file, index, data = pod.arenas.allocate(rank, about, copy.step)
    for entry in about.entries:
        manifest.entry_data(data, entry)[:] = tensors[entry.key]
    arena.seal(
        file.buf, file.header, index, step=copy.step, attempt=copy.attempt, writer=pod.attempt,
        data_bytes=about.data_bytes, manifest=manifest.dump(about),
    )  # fmt: skip
    pod.view(rank, copy).verify()


def soil(job: PeerJob) -> None:
    """Snapshots of another size leave their bytes in all slots."""
    for step in range(3):
        job.seal(step, [SIZE + 17 * 64 + 31] * job.world, FROZEN)
        for pod in job.pods:
            pod.arenas.commit(step)


def lost_and_fetched(make_pods: MakePods, change: bool = False) -> tuple[PeerJob, Copy]:
    """Step 3 was protected; then pods 0 and 1 were lost, more than can be rebuilt, and a store gave them the step back."""
    job = make_pods(3, encrypted=False)
    soil(job)
    copy = job.seal(3, [SIZE] * 3, FROZEN)
    job.protect(copy)
    stored = store(job, copy)
    for pod in job.pods:
        pod.peers.parity.keep([copy])
    job.lose(0, 1)
    for rank in (0, 1):
        about, tensors = stored[rank]
        fetch(job.pods[rank], rank, copy, (dataclasses.replace(about, tree={"other": 1}) if change else about, tensors))
    return job, copy


def rebuilt(job: PeerJob, copy: Copy) -> None:
    job.lose(0)
    job.rebuild(copy, 0)
    job.pods[0].view(0, copy).verify()


@pytest.mark.parametrize("change", [False, True])
def test_parity_from_before_a_restore_from_a_store_is_parity_of_what_was_restored_or_made_anew(
    make_pods: MakePods, change: bool
) -> None:
    job, copy = lost_and_fetched(make_pods, change)
    received = job.protect(copy)
    assert bool(received[2]) == change, "pod 2 has its parity, unless the images are others"
    assert job.pods[2].peers.parity.whole()[2] == (Parity(copy, (0, 1, 2), 1),), "no parity of images that are no more"
    rebuilt(job, copy)


@pytest.mark.parametrize("change", [False, True])
def test_differences_go_on_from_parity_of_these_very_images_only(make_pods: MakePods, change: bool) -> None:
    """Pod 2 still has the parity from before, and takes it for its base."""
    job, copy = lost_and_fetched(make_pods, change)
    new = Copy(4, job.attempt)
    for rank in range(3):
        job.pod_of(rank).seal(rank, 4, SIZE, FROZEN)
    received = job.protect(new, base=copy)
    assert (received[2] > SIZE * 0.9) == change
    rebuilt(job, new)


def test_what_lies_between_tensors_may_change_at_any_time(make_pods: MakePods) -> None:
    job = make_pods(3, encrypted=False)
    copy = job.seal(3, [SIZE] * 3, FROZEN)
    view = job.pods[1].view(1, copy)
    gaps = [range(e.offset + e.nbytes, arena.align(e.offset + e.nbytes)) for e in view.manifest().entries[:-1]]
    assert any(gaps)
    job.protect(copy)
    for at in (at for gap in gaps for at in gap):
        view.data()[at] ^= 0xFF
    rebuilt(job, copy)
    assert not job.pods[1].corrupt


def test_an_empty_tensor_at_the_end_leaves_no_hole(make_pods: MakePods) -> None:
    job = make_pods(2, encrypted=False)
    copy = Copy(3, 1)
    for rank, pod in enumerate(job.pods):
        placed = manifest.lay_out([Entry("weight", "bytes", (1001,), 0, 1001), Entry("none", "bytes", (0,), 0, 0)])
        raw = content(rank, 3, 1001)
        about = SlotManifest(3, 1, rank, 2, placed, {})
        area = memoryview(raw + bytes(23))
        filled = dataclasses.replace(about, entries=tuple(manifest.with_checksums(e, area) for e in placed))
        assert filled.data_bytes > 1001
        fetch(pod, rank, copy, (filled, {"weight": raw, "none": b""}))
    job.protect(copy)
    rebuilt(job, copy)
