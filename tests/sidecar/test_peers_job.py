"""Jobs of real sidecars that protect each other: from a committed step to parity, from a lost pod to its rebuilt memory."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import pytest
from holdfast_core import arena
from holdfast_core.config import PeersConfig
from holdfast_core.messages import PEERS, Command, Parity, Source
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar import assumed
from holdfast_sidecar.group.protect import PACE_SECONDS

from .conftest import MakeJob
from .harness import Sidecar, eventually, free_port
from .images import content, flip, map_file, read_content
from .jobs import Job, Pod

ON = PeersConfig(group_size=4, parity=1)


def protected(job: Job, step: int, seconds: float = 20) -> None:
    job.wait(lambda s: s.protected is not None and s.protected.step >= step, f"step {step} protected", seconds)


def lose(job: Job, index: int) -> Pod:
    """The pod's node is gone, RAM and all; a new pod takes its index."""
    old = job.pods[index]
    config = old.sidecar.config
    old.close()
    shutil.rmtree(config.shared_dir)
    fresh = dataclasses.replace(config, pod=f"{config.pod}-new", shared_dir=f"{config.shared_dir}n")
    sidecar = Sidecar(fresh).start()
    job.pods[index] = Pod(sidecar)
    return job.pods[index]


def recover(job: Job, step: int, lost: tuple[int, ...], attempt: int) -> None:
    """What the operator orders after a loss."""
    source = Source(PEERS, step, attempt)
    job.attempt += 1
    job.history = (*(r for r in job.history if r.step < step), Resume(job.attempt, step))
    command = Command(
        "prepare", job.attempt, tuple(s.member for s in job.sidecars), source, job.history, 29500, grace_seconds=0.2,
        levels={r: PEERS for i in lost for r in ranks(job, i)},
    )  # fmt: skip
    for sidecar in job.sidecars:
        sidecar.order(command)
    job.wait(lambda s: s.attempt == job.attempt and s.phase in ("prepared", "failed"), "prepared", 30)
    assert [s.state().phase for s in job.sidecars] == ["prepared"] * len(job.pods), [s.state().error for s in job.sidecars]


def ranks(job: Job, index: int) -> range:
    config = job.sidecars[index].config
    return range(config.first_rank, config.first_rank + config.processes)


def snapshot(pod: Pod, rank: int, attempt: int, size: int) -> tuple[Copy, bytes]:
    """What a trainer would restore."""
    pod.train(attempt, size)
    trainer = next(t for t in pod.trainers if t.rank == rank)
    return read_content(trainer.attached.path, trainer.attached.slot)


def test_every_step_gets_parity_and_a_lost_pods_memory_is_rebuilt_byte_for_byte(make_job: MakeJob) -> None:
    job = make_job(3, 2, peers=ON, slots=4)
    job.begin(size=300_000)
    job.run(0, 4)
    protected(job, 4)
    parity = job.sidecars[0].state().parity
    assert parity[0] == (Parity(Copy(4, 1), (0, 2, 4), 1),)
    assert parity[1][0].group == (1, 3, 5), "rank by rank: one of each pod"
    fresh = lose(job, 1)
    recover(job, 4, (1,), 1)
    job.order("launch")
    for rank in (2, 3):
        assert snapshot(fresh, rank, job.attempt, 300_000) == (Copy(4, 1), content(rank, 4, 300_000))
    assert 'restored_bytes_total{job_name="gpt",level="peers"' in fresh.sidecar.metrics()


def test_rounds_have_a_pace_however_short_the_steps_are(make_job: MakeJob) -> None:
    job = make_job(2, peers=ON)
    job.begin()
    start = time.monotonic()
    for step in range(2):
        job.step(step)
        protected(job, step)
    assert time.monotonic() - start >= PACE_SECONDS


def test_after_a_recovery_the_step_is_protected_again_before_any_new_one(make_job: MakeJob) -> None:
    job = make_job(3, peers=ON, slots=4)
    job.begin()
    job.run(0, 2)
    protected(job, 2)
    lose(job, 0)
    recover(job, 2, (0,), 1)
    job.wait(lambda s: any(p.copy == Copy(2, 1) for held in s.parity.values() for p in held), "parity of step 2 at all three")
    lose(job, 2)
    recover(job, 2, (2,), 1)
    job.order("launch")
    job.wait(lambda s: s.phase == "running", "running")


def test_the_protected_step_is_never_overwritten_however_far_training_is_ahead(make_job: MakeJob) -> None:
    job = make_job(2, peers=dataclasses.replace(ON, bandwidth=200_000))  # 1 MB takes five seconds
    job.begin(size=1_000_000)
    job.step(0)
    protected(job, 0, 60)
    for step in range(1, 8):
        for pod in job.pods:
            pod.trainers[0].snapshot(step, skip_ok=True)
        for sidecar in job.sidecars:
            state = sidecar.state()
            held = {p.copy for p in state.parity[sidecar.config.first_rank]}
            assert held & set(state.sealed[sidecar.config.first_rank]), "of some step, parity and the own snapshot are there"


def test_a_restarted_sidecar_still_has_its_parity_and_the_job_stays_protected(make_job: MakeJob) -> None:
    job = make_job(3, peers=ON, slots=4)
    job.begin()
    job.run(0, 3)
    protected(job, 3)
    for index in (1, 0):  # a plain member, then the coordinator
        job.sidecars[index].kill()
        job.sidecars[index].start()
        job.wait(lambda s: s.protected == Copy(3, 1) and len(s.parity) == 1, "as before")
        job.pods[index].train(job.attempt)
    job.run(4, 6)
    protected(job, 6)


def test_a_pod_without_its_certificate_is_no_peer(make_job: MakeJob, tmp_path: Path) -> None:
    from .conftest import issue_certificates

    job = make_job(3, peers=ON, slots=4)
    stranger = tmp_path / "other"
    issue_certificates(stranger)
    config = job.sidecars[2].config
    job.begin()
    job.run(0, 1)
    protected(job, 1)
    job.pods[2].close()
    shutil.rmtree(config.shared_dir)
    job.pods[2] = Pod(Sidecar(dataclasses.replace(config, tls_dir=str(stranger), shared_dir=f"{config.shared_dir}x")).start())
    source = Source(PEERS, 1, 1)
    history = (Resume(2, 1),)
    members = tuple(s.member for s in job.sidecars)
    command = Command("prepare", 2, members, source, history, 29500, levels={2: PEERS})
    for sidecar in job.sidecars:
        sidecar.order(command)
    job.wait(lambda s: s.phase in ("prepared", "failed"), "an answer", 60)
    assert job.sidecars[2].state().phase == "failed"


def test_a_spare_takes_the_lost_pods_ranks_and_keeps_them_over_a_restart(make_job: MakeJob) -> None:
    job = make_job(3, 2, peers=ON, slots=4)
    config = job.sidecars[1].config
    spare = Pod(
        Sidecar(
            dataclasses.replace(
                config, pod="gpt-s1", index=-1, first_rank=0, shared_dir=f"{config.shared_dir}s",
                api_port=free_port(), peer_port=free_port(), metrics_port=free_port(), slot_bytes=1 << 20,
            )
        ).start()
    )  # fmt: skip
    try:
        told = spare.sidecar.state()
        assert told.arena_bytes == 0, "it holds no rank, so no memory"
        assert (told.ranks, told.sealed, told.parity) == ((), {}, {}), "what it says of a rank would count for another pod's"
        job.begin(size=300_000)
        job.run(0, 2)
        protected(job, 2)
        lost = job.pods[1]
        lost.close()
        shutil.rmtree(config.shared_dir)
        job.pods[1] = spare
        taken = dataclasses.replace(spare.sidecar.config, index=1, first_rank=2)
        spare.sidecar.config = taken
        recover(job, 2, (1,), 1)
        spare.sidecar.config = dataclasses.replace(taken, index=-1, first_rank=0)  # its environment stays what it was
        spare.sidecar.kill()
        spare.sidecar.start()
        spare.sidecar.config = taken
        job.order("launch")
        for rank in (2, 3):
            assert snapshot(spare, rank, job.attempt, 300_000) == (Copy(2, 1), content(rank, 2, 300_000))
        job.wait(lambda s: s.protected == Copy(2, 1) and len(s.parity) == 2, "protected again")
    finally:
        spare.close()


@pytest.mark.parametrize("left", ["", "1x", "-3"])
def test_a_spare_that_was_killed_while_it_wrote_down_its_index_starts_as_a_spare(make_job: MakeJob, left: str) -> None:
    config = make_job(1, peers=ON).sidecars[0].config
    shared = Path(f"{config.shared_dir}s")
    (shared / "run").mkdir(parents=True)
    (shared / "run" / "index").write_text(left)
    ports = {"api_port": free_port(), "peer_port": free_port(), "metrics_port": free_port()}
    spare = Sidecar(dataclasses.replace(config, pod="gpt-s1", index=-1, shared_dir=str(shared), **ports))
    try:
        assert spare.start().state().index == -1
    finally:
        spare.close()


def test_an_index_is_written_down_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    assumed.save(path, 12)
    assert assumed.load(path) == 12
    monkeypatch.setattr("os.replace", lambda *_: None)  # killed just before
    assumed.save(path, 7)
    assert assumed.load(path) == 12


def test_a_snapshot_that_turns_out_to_be_corrupt_is_forgotten_and_the_operator_is_told(make_job: MakeJob) -> None:
    job = make_job(3, peers=dataclasses.replace(ON, bandwidth=400_000))
    job.begin(size=1_000_000)
    job.step(0)
    (path,) = (Path(job.sidecars[1].config.shared_dir) / "arena").iterdir()
    flip(path, arena.read_header(map_file(path)).region(0) + 900_000)
    eventually(lambda: job.sidecars[1].state().sealed == {1: ()}, 20, "forgotten")
    assert "step 0 in memory is damaged" in job.sidecars[1].log()


def test_a_pod_that_is_told_to_go_stays_until_its_peers_can_do_without_it(make_job: MakeJob) -> None:
    """There is no store: what only its memory has is lost with it."""
    job = make_job(3, peers=dataclasses.replace(ON, bandwidth=400_000), slots=4)
    job.begin(size=1_000_000)
    job.run(0, 1)
    protected(job, 0, 60)
    job.run(2, 6)
    state = job.sidecars[2].state()
    assert state.protected != state.committed
    assert job.sidecars[2].terminate(60) == 0
    for sidecar in job.sidecars[:2]:
        assert {p.copy.step for p in sidecar.state().parity[sidecar.config.index]} >= {6}


def test_a_pod_that_is_told_to_go_does_not_wait_for_ever(make_job: MakeJob) -> None:
    job = make_job(3, peers=dataclasses.replace(ON, bandwidth=1000), slots=4, drain_seconds=1.0)
    job.begin(size=1_000_000)
    job.run(0, 0)
    start = time.monotonic()
    assert job.sidecars[2].terminate(30) == 0
    assert 1.0 <= time.monotonic() - start < 10.0


def test_a_step_that_is_protected_anew_in_other_groups_is_protected_in_the_old_ones_until_then(make_job: MakeJob) -> None:
    """A domain has moved: the same step, which nothing newer follows, is coded in groups of another shape."""
    job = make_job(4, peers=dataclasses.replace(ON, group_size=2), slots=4)
    domains = {0: "a", 1: "b", 2: "c", 3: "d"}
    job.prepare_in(domains)
    job.launch()
    job.run(0, 2)
    protected(job, 2)
    before = {s.config.index: s.state().parity[s.config.index][0].group for s in job.sidecars}
    assert set(before.values()) == {(0, 1), (2, 3)}
    job.prepare_in({0: "a", 1: "a", 2: "b", 3: "b"}, Source("memory", 2, 1))
    job.order("launch")

    def regrouped() -> bool:
        parity = [s.state().parity.get(s.config.index, ()) for s in job.sidecars]
        groups = [{p.group for p in held if p.copy == Copy(2, 1)} for held in parity]
        assert all(groups), "at no time is there a pod without whole parity of the step"
        return all(len(g) == 1 and before[i] not in g for i, g in enumerate(groups))

    eventually(regrouped, 20, "the same step in new groups")
    job.wait(lambda s: s.protected == Copy(2, 1), "still protected")
