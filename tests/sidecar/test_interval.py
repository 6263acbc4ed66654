"""The interval of snapshots reaches the trainers, whatever restarts; and what snapshots cost is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from holdfast_core import arena
from holdfast_core.local import Sealed
from holdfast_core.messages import AgentState, Command, Source
from holdfast_sidecar.metrics import capture_mode
from holdfast_sidecar.pace import Pace, usable

from .conftest import MakeJob
from .harness import eventually
from .images import map_file

# --- the word


def words(folder: Path) -> list[int]:
    """The intervals in all arenas of pod 0."""
    return [arena.every(map_file(path)) for path in sorted((folder / "p0" / "arena").iterdir())]


def test_the_interval_of_an_attempt_is_there_before_its_first_step(make_job: MakeJob) -> None:
    job = make_job(pods=1, processes=2, tls=False)
    job.sidecars[0].order(dataclasses.replace(job.command(), every=8))
    job.wait(lambda s: s.phase == "prepared" and s.every == 8, "prepared")
    job.launch()
    assert [t.every for t in job.pods[0].trainers] == [8, 8], "though the arenas are younger than the order"


def test_a_new_interval_is_in_force_at_once_and_is_fenced(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1, processes=2, tls=False)
    (sidecar,) = job.sidecars
    assert sidecar.send(Command("interval", 1, every=4))[0] == 400, "nothing is prepared yet"
    job.attempt = 1
    job.begin()
    assert [t.every for t in job.pods[0].trainers] == [0, 0], "a prepare without one orders none"
    for _ in range(2):
        sidecar.order(Command("interval", 2, every=4))
    assert [t.every for t in job.pods[0].trainers] == [4, 4]
    assert sidecar.send(Command("interval", 1, every=16)) == (409, {"attempt": 2})
    assert sidecar.send(Command("interval", 3, every=16))[0] == 400
    assert sidecar.send(Command("interval", 2, every=-1))[0] == 400
    assert sidecar.send(Command("prepare", 3, (sidecar.member,), every=-1))[0] == 400
    assert (words(folder), sidecar.state().every, sidecar.state().attempt) == ([4, 4], 4, 2)
    assert "holdfast_snapshot_interval_steps" in sidecar.metrics()


def test_the_coordinator_tells_all_also_those_who_were_away(make_job: MakeJob) -> None:
    job = make_job(pods=3)
    job.begin()
    job.run(0, 0)
    absent = job.sidecars[2]
    absent.kill()
    job.sidecars[0].order(Command("interval", 1, every=4))
    eventually(lambda: job.sidecars[1].state().every == 4, what="told")
    absent.start()
    job.wait(lambda s: s.every == 4, "told when it is back")
    assert [pod.trainers[0].every for pod in job.pods] == [4, 4, 4]


def test_a_coordinator_that_dies_after_the_order_tells_the_others_when_it_is_back(make_job: MakeJob) -> None:
    job = make_job(pods=2)
    job.begin()
    job.run(0, 0)
    job.sidecars[1].kill()
    job.sidecars[0].order(Command("interval", 1, every=4))
    job.sidecars[0].kill()
    for sidecar in job.sidecars:
        sidecar.start()
    job.wait(lambda s: s.every == 4, "told by one that was restarted")


def test_ranks_that_learn_of_it_at_different_steps_go_on_committing(make_job: MakeJob) -> None:
    job = make_job(pods=2)
    job.begin()
    job.run(0, 2)
    job.pods[0].trainers[0].snapshot(3)  # the other one knows already
    job.sidecars[0].order(Command("interval", 1, every=4))
    job.wait(lambda s: s.every == 4, "told")
    for step in (7, 11, 15):
        job.run(step, step)


def test_grown_arenas_and_later_attempts_keep_it(make_job: MakeJob, folder: Path) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    job.run(0, 1)
    job.order("interval", every=2)
    trainer = job.pods[0].trainers[0]
    trainer.size = 900_000
    trainer.reserve()
    assert words(folder) == [2, 2], "the old arena and the new one"
    job.begin(Source("memory", 1, 1))
    assert job.pods[0].trainers[0].every == 2
    assert job.sidecars[0].state().every == 2


def test_it_survives_the_sidecar_also_where_no_arena_is_yet(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    (sidecar,) = job.sidecars
    job.begin()
    job.order("interval", every=32)
    sidecar.kill()
    sidecar.start()
    assert sidecar.state().every == 32
    job.pods[0].train(1)
    assert job.pods[0].trainers[0].every == 32
    sidecar.kill()
    sidecar.start()
    assert job.pods[0].trainers[0].every == 32, "the word in an arena that is taken over"


# --- costs


def test_costs_are_told_and_counted(make_job: MakeJob) -> None:
    job = make_job(pods=1)
    job.begin()
    trainer = job.pods[0].trainers[0]
    trainer.costs = {"fence_seconds": 0.25, "capture_seconds": 0.125, "copied": 7, "mode": "lazy, 2 threads: cores are idle"}
    job.run(0, 3)
    trainer.costs = {"capture_seconds": 0.125, "copied": 7, "mode": "lazy, 2 threads: cores are idle"}
    job.run(4, 8)
    text = str(eventually(lambda: (t := job.sidecars[0].metrics()) and "wait_seconds_total" in t and t))
    labels = 'job_name="gpt",namespace="default"'
    for line in (
        f'holdfast_fence_waits_total{{{labels},rank="0"}} 4.0',
        f'holdfast_fence_wait_seconds_total{{{labels},rank="0"}} 1.0',
        f"holdfast_capture_seconds_sum{{{labels}}} 1.125",
        f"holdfast_copied_bytes_total{{{labels}}} 63.0",
        'holdfast_capture_mode{job_name="gpt",mode="lazy",namespace="default",threads="2"} 1.0',
    ):
        assert line in text, text
    job.wait(lambda s: s.step_seconds is not None, "steps are timed")
    state: AgentState = job.sidecars[0].state()
    assert (state.capture, state.copied, state.fence_seconds) == (trainer.costs["mode"], 7, 0.0)
    assert state.cost_seconds == pytest.approx(0.001)


def test_a_trainer_that_does_not_tell_is_taken_to_copy_everything(make_job: MakeJob) -> None:
    job = make_job(pods=1)
    job.begin()
    job.run(0, 2)
    lines = job.sidecars[0].metrics().splitlines()
    copied, captured = (
        next(float(line.split()[-1]) for line in lines if line.startswith(f"holdfast_{n}_bytes_total{{"))
        for n in ("copied", "captured")
    )
    assert copied == captured > 0


def test_nonsense_in_a_message_does_not_spoil_the_state(make_job: MakeJob) -> None:
    job = make_job(pods=1, tls=False)
    job.begin()
    job.pods[0].trainers[0].costs = {"fence_seconds": float("nan"), "capture_seconds": -1.0, "copied": -9, "mode": "x" * 9999}
    job.run(0, 4)
    state = job.sidecars[0].state()
    assert (state.fence_seconds, state.capture_seconds, state.copied, len(state.capture)) == (0.0, 0.0, -1, 500)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", ("none", "")),
        ("sync", ("sync", "")),
        ("lazy, 1 thread: two cores are idle", ("lazy", "1")),
        ("sync, 16 threads", ("sync", "16")),
        ("sync: lazy was slower", ("sync", "")),
        ("lazy, 999 threads", ("lazy", "64")),
        ("lazier", ("other", "")),
    ],
)
def test_the_modes_labels_are_few(text: str, labels: tuple[str, str]) -> None:
    assert capture_mode(text) == labels


# --- pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_does_not_count_and_the_slowest_rank_does() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(12):
        clock.now += 600.0 if step == 6 else 0.5
        pace.progress(0, 1, step)
    assert pace.step_seconds == 0.5
    clock.now = 0.0
    for step in range(12):
        clock.now += 0.75
        pace.progress(1, 1, step)
    assert pace.step_seconds == 0.75


def test_time_between_attempts_is_no_step() -> None:
    clock = Clock()
    pace = Pace(clock)
    for attempt in range(1, 30):
        clock.now += 100.0
        pace.progress(0, attempt, 5)
    assert pace.step_seconds is None
    for step in range(6, 15):
        clock.now += 2.0
        pace.progress(0, 29, step)
        pace.progress(0, 29, step)  # said again
    assert pace.step_seconds == 2.0
    pace.forget_steps()
    assert pace.step_seconds is None


def test_steps_that_were_not_told_one_by_one() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(0, 100, 10):
        clock.now += 5.0
        pace.progress(0, 1, step)
    assert pace.step_seconds == 0.5


def test_the_cost_is_what_the_loop_lost() -> None:
    pace = Pace()
    for number, stall in enumerate((9.0, 0.25, 0.25, 0.25, 0.25)):
        pace.sealed(Sealed(0, 1, number, "p", 0, 1, stall, fence_seconds=0.5, capture_seconds=3.0))
    assert pace.cost_seconds == 0.75
    assert usable(Sealed(0, 1, 0, "p", 0, 1, float("inf"))).stall_seconds == 0.0
