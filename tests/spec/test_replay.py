"""Traces of real runs against the promises."""

from __future__ import annotations

import json

import pytest
from holdfast_spec import __main__ as command
from holdfast_spec import replay


class Log:
    """A run of three pods, told as their sidecars would."""

    def __init__(self) -> None:
        self.lines, self.now = [], 0.0

    def say(self, index: int, attempt: int, what: str, pod: str = "", **fields) -> None:
        self.now += 0.01
        self.lines.append(
            {"t": self.now, "pod": pod or f"p{index}", "index": index, "attempt": attempt, "what": what, **fields}
        )

    def begin(
        self, attempt: int, level: str = "", step: int = -1, of: int = 0, pods: tuple[str, ...] = ("p0", "p1", "p2")
    ) -> None:
        for what in ("prepare", "prepared"):
            for index, pod in enumerate(pods):
                self.say(index, attempt, what, pod, level=level, step=step, of=of)

    def seal(self, attempt: int, step: int, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        for rank in ranks:
            self.say(rank, attempt, "sealed", rank=rank, step=step, of=attempt)

    def commit(self, attempt: int, step: int, level: str = "memory", of: int | None = None) -> None:
        self.say(0, attempt, "decided", order="committed", level=level, step=step, of=of or attempt, round=0)

    def lose(self, pod: str) -> None:
        self.say(-1, 1, "dark", "the test", lost=[pod])

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def hold(self, attempt: int, step: int, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        for rank in ranks:
            self.say(rank, attempt, "holds", rank=rank, step=step, of=attempt, group=[0, 1, 2], parity=1, round=1)

    @property
    def problems(self) -> list[str]:
        return [p.split(": ", 1)[1] for p in replay.check(self.lines)]


def protected_run() -> Log:
    log = Log()
    log.begin(1)
    log.seal(1, 0)
    log.commit(1, 0)
    log.hold(1, 0)
    log.commit(1, 0, "peers")
    return log


def test_a_run_as_it_should_be_has_no_problems():
    log = protected_run()
    log.begin(2, "peers", 0, 1, ("p0", "p1", "new"))
    log.say(2, 2, "sealed", "new", rank=2, step=1, of=2)
    log.seal(2, 1, (0, 1))
    log.commit(2, 1)
    assert log.problems == []


def test_a_commit_before_all_ranks_sealed():
    log = Log()
    log.begin(1)
    log.seal(1, 0)
    log.seal(1, 1, (0, 2))
    log.commit(1, 1)
    assert log.problems == ["I3: step 1 of attempt 1 in memory is committed before ranks [1] sealed it"]


@pytest.mark.parametrize(("step", "seconds", "fine"), [(1, 0, True), (2, 0, True), (3, 0, False), (1, 9, False)])
def test_a_pod_that_loses_power_takes_its_last_words_along(step: int, seconds: int, fine: bool):
    log = protected_run()
    log.seal(1, step, (0, 2))
    log.lose("p1")
    log.wait(seconds)
    log.commit(1, step)
    missing = f"I3: step {step} of attempt 1 in memory is committed before ranks [1] sealed it"
    assert log.problems == ([] if fine else [missing])
    for rank in (0, 2):
        log.say(rank, 1, "holds", rank=rank, step=step, of=1, group=[0, 1, 2], parity=1, round=1)
    log.commit(1, step, "peers")
    assert len(log.problems) == (0 if fine else 2), "the same of its parity"


def test_a_pod_that_loses_power_later_is_no_excuse():
    log = protected_run()
    log.seal(1, 1, (0, 2))
    log.commit(1, 1)
    log.seal(1, 1, (1,))
    log.lose("p1")
    assert log.problems == ["I3: step 1 of attempt 1 in memory is committed before ranks [1] sealed it"]


def test_protection_before_all_hold_parity():
    log = Log()
    log.begin(1)
    log.seal(1, 0)
    log.hold(1, 0, (0, 2))
    log.commit(1, 0, "peers")
    assert log.problems == ["I1: step 0 is called protected before all of ranks [0, 1, 2] hold their parity"]


def test_a_commit_says_which_groups_it_is_about():
    log = Log()
    log.begin(1)
    log.seal(1, 0)
    for rank in (0, 2):
        log.say(rank, 1, "holds", rank=rank, step=0, of=1, group=[0, 2], parity=1, round=1)
    log.say(0, 1, "decided", order="committed", level="peers", step=0, of=1, round=0, groups=[[0, 2]])
    assert log.problems == []


def test_words_of_an_attempt_after_a_later_one():
    log = protected_run()
    log.begin(2, "memory", 0, 1)
    log.say(1, 1, "sealed", rank=1, step=1, of=1)
    assert log.problems == ["I4: a word (sealed) of attempt 1 after attempt 2"]


def test_ranks_that_resume_from_different_steps():
    log = protected_run()
    log.seal(1, 1)
    log.say(0, 2, "prepare", level="memory", step=1, of=1)
    log.say(1, 2, "prepare", level="memory", step=0, of=1)
    assert log.problems == [
        "I3: resumes from step 0 of attempt 1 in memory, others from step 1 of attempt 1 in memory",
    ]


def test_a_step_that_a_later_attempt_abandoned():
    log = protected_run()
    log.seal(1, 1)
    log.begin(2, "memory", 0, 1)
    log.begin(3, "memory", 1, 1)
    assert log.problems == ["I4: resumes from step 1 of attempt 1 in memory, which a later attempt abandoned"]


def test_a_committed_step_that_is_not_resumed_though_nobody_was_lost():
    log = protected_run()
    log.seal(1, 1)
    log.commit(1, 1)
    log.begin(2, "memory", 0, 1)
    assert log.problems == ["I1: step 1 of attempt 1 in memory was committed, with 0 pods lost step 0 is resumed"]


def test_a_protected_step_that_is_not_resumed_though_one_pod_was_lost():
    log = protected_run()
    log.begin(2, "", pods=("p0", "p1", "new"))
    assert log.problems == ["I1: step 0 of attempt 1 in peers was committed, with 1 pods lost step -1 is resumed"]


def test_more_losses_than_parity_are_allowed_to_cost_the_step():
    log = protected_run()
    log.begin(2, "", pods=("p0", "other", "new"))
    assert log.problems == []


def test_a_step_that_was_found_corrupt_is_not_missed():
    log = protected_run()
    log.say(1, 1, "failed", level="memory", step=0, of=1, rank=1)
    log.begin(2)
    assert log.problems == []


@pytest.mark.parametrize(("times", "fine"), [(1, False), (2, True)])
def test_a_step_that_was_out_of_reach_for_a_moment_is_asked_for_again(times: int, fine: bool):
    log = protected_run()
    for attempt in range(2, 2 + times):
        log.begin(attempt, "peers", 0, 1, ("p0", "p1", "new"))
        log.say(2, attempt, "failed", "new", level="peers", step=0, of=1, rank=2, passing=True)
    log.begin(2 + times, pods=("p0", "p1", "newer"))
    assert log.problems == (
        [] if fine else ["I1: step 0 of attempt 1 in peers was committed, with 1 pods lost step -1 is resumed"]
    )


def test_two_coordinators_in_one_attempt():
    log = protected_run()
    log.seal(1, 1)
    log.say(1, 1, "decided", order="committed", level="memory", step=1, of=1, round=0)
    assert log.problems == ["I4: it decides, and so does pod p0"]


def test_files_are_logs_with_other_lines_between(tmp_path, capsys):
    lines = [f"2026-01-01T00:00:00Z stderr F INFO trace {json.dumps(e)}" for e in protected_run().lines]
    (tmp_path / "a.log").write_text("\n".join(["started", *lines, 'INFO trace {"t": 1']))
    assert command.main(["replay", str(tmp_path / "a.log")]) == 0
    assert "0 promises broken" in capsys.readouterr().out
