"""The resource's status: exact memory for the operator, plain words for people."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from holdfast_core.interval import Interval
from holdfast_core.planner import Avoided, Condition, LevelStatus, Protection, Recovery, Restarts, Spare, Status
from holdfast_core.wire import WireError
from holdfast_operator import spec, status
from holdfast_operator.status import Problem, Record
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_samples import job

LEVELS = st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a (nested, frozen) type that JSON can carry."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{f.name: values(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin in (Union, types.UnionType):
        return st.one_of([st.none() if a is type(None) else values(a) for a in args])
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(LEVELS if args[0] is str else values(args[0]), values(args[1]), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**53), 2**53),
        float: st.floats(0, 4e9),
        str: st.text(max_size=20),
        bool: st.booleans(),
    }
    return simple[kind]


def through_the_api_server(document: Any) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


@settings(max_examples=60)
@given(values(Record))
def test_an_operator_that_starts_anew_remembers_everything(record: Record):
    document = status.document(record, spec.parse(job()), None, {}, 1.8e9)
    assert status.restore(through_the_api_server(document)) == record


def test_a_new_job_has_nothing_to_remember():
    assert status.restore({}) == Record()


def test_a_spoilt_memory_is_not_guessed_at():
    document = status.document(Record(), spec.parse(job()), None, {}, 1.8e9)
    document["internal"] = document["internal"].replace('"attempt":0', '"attempt":"many"')
    with pytest.raises(WireError, match=r"Record.planner.attempt"):
        status.restore(document)


def sample() -> Record:
    return Record(
        Status(
            phase="Running",
            stage="running",
            attempt=4,
            step=120,
            reached=120,
            ready=2,
            message="attempt 4: processes started",
            restarts=Restarts(process=2, pod=1, job=0),
            checkpoints={"pvc": LevelStatus(100, 1_800_000_000.5), "memory": LevelStatus(120, 1_800_000_020.0)},
            recoveries=1,
            last_recovery=Recovery(4, "ProcessDied", "rank 1 was killed", "memory", 118, 1, 2.5, 1_800_000_010.0, ("quoted",)),
            goodput=0.984,
            first_step_at=1_799_999_000.0,
            conditions=(
                Condition("Training", True, "Progressing", "on", 1_800_000_000.0),
                Condition("PodsReady", True, "AllReady", "2 of 2", 1_800_000_000.0),
            ),
        )
    )


def test_what_people_read():
    made = status.document(sample(), spec.parse(job()), None, {}, 1_800_000_030.0)
    assert (made["phase"], made["saved"], made["ready"], made["step"]) == ("Running", "memory@120", "2/2", 120)
    assert made["restarts"] == {"total": 3, "process": 2, "pod": 1, "job": 0}
    assert made["checkpoints"]["pvc"] == {"step": 100, "time": "2027-01-15T08:00:00Z"}
    assert made["lastRecovery"] == {
        "attempt": 4,
        "reason": "ProcessDied",
        "message": "rank 1 was killed",
        "level": "memory",
        "step": 118,
        "lostSteps": 1,
        "seconds": 2.5,
        "time": "2027-01-15T08:00:10Z",
        "evidence": ["quoted"],
    }
    assert made["observedGeneration"] == 3
    assert made["selector"] == "holdfast.dev/job-uid=0a1b2c3d-0000-4000-8000-000000000000"
    assert [c["type"] for c in made["conditions"]] == ["Accepted", "PodsReady", "Training"]
    assert {c["observedGeneration"] for c in made["conditions"]} == {3}


def test_how_snapshots_are_taken_is_told():
    record = sample()
    assert "snapshots" not in status.document(record, spec.parse(job()), None, {}, 1.0)
    planner = dataclasses.replace(
        record.planner, interval=Interval(8, "every 8 steps, because", "basis"), capture="lazy, 1 thread"
    )
    made = status.document(dataclasses.replace(record, planner=planner), spec.parse(job()), None, {}, 1.0)
    assert made["snapshots"] == {"steps": 8, "reason": "every 8 steps, because", "capture": "lazy, 1 thread"}


def test_what_protects_the_job_and_which_nodes_it_avoids():
    plain = status.document(sample(), spec.parse(job()), None, {}, 1.0)
    assert not {"protection", "avoidedNodes", "spares"} & plain.keys()
    planner = dataclasses.replace(
        sample().planner,
        protection=Protection(1, 119, "any node may be lost: step 119 is in peers' RAM, 1 steps behind memory"),
        avoided=(Avoided("n1", 2, "2 failures", 1_800_000_000.0, 1_800_003_600.0),),
        spares=(Spare(1, seen=True), Spare(3)),
        spares_ready=1,
    )
    body = job()
    body["spec"]["workers"]["spares"] = 2
    made = status.document(Record(planner), spec.parse(body), None, {}, 1.0)
    assert made["protection"]["faults"] == 1
    assert made["protection"]["step"] == 119
    assert made["spares"] == "1/2"
    assert made["avoidedNodes"] == [
        {"node": "n1", "count": 2, "reason": "2 failures", "since": "2027-01-15T08:00:00Z", "until": "2027-01-15T09:00:00Z"}
    ]


def test_of_equally_fresh_levels_memory_is_named():
    levels = {"zpvc": LevelStatus(5, 1.0), "peers": LevelStatus(5, 1.0), "memory": LevelStatus(5, 1.0)}
    record = Record(Status(checkpoints=levels))
    assert status.document(record, spec.parse(job()), None, {}, 1.0)["saved"] == "memory@5"


def test_only_progress_may_be_written_late():
    record = sample()
    later = dataclasses.replace(record.planner, step=130, reached=130, goodput=0.99, ready=1, checkpoints={})
    assert Record(later).steady() == record.steady()
    protected = dataclasses.replace(record.planner, protection=Protection(1, 119, "any node may be lost: step 119"))
    further = dataclasses.replace(protected, protection=Protection(1, 121, "any node may be lost: step 121"))
    worse = dataclasses.replace(protected, protection=Protection(0, -1, "LeftOut: pod 1"))
    assert Record(protected).steady() == Record(further).steady() != Record(worse).steady()
    for change in ({"attempt": 5}, {"stage": "gathering"}, {"message": "x"}, {"cause": None, "failed_at": 1.0}):
        assert Record(dataclasses.replace(record.planner, **change)).steady() != record.steady()


def test_a_refused_spec_keeps_what_is_known():
    before = status.document(sample(), spec.parse(job()), None, {}, 1_800_000_030.0)
    made = status.refused(Problem("InvalidSpec", "spec.x: no"), 4, before, 1_800_000_040.0)
    accepted = next(c for c in made["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"], accepted["observedGeneration"]) == ("False", "InvalidSpec", 4)
    assert accepted["lastTransitionTime"] == "2027-01-15T08:00:40Z"
    assert made["internal"] == before["internal"]
    again = status.refused(Problem("InvalidSpec", "spec.x: no"), 4, made, 1_800_000_099.0)
    assert again == made
