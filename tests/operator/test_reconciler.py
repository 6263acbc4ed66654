"""The loop of a job, end to end but for the cluster: an API server in memory, sidecars on loopback with the job's own mTLS."""

from __future__ import annotations

import asyncio
import base64
import copy
import dataclasses

import pytest
from fake_api import FakeApi
from holdfast_core.messages import RankState
from holdfast_operator import apply, keeper, objects, status
from holdfast_operator.api import ApiError
from operator_samples import job
from operator_waiting import until
from reconciler_bench import JOB, PODS, SECRET, SERVICE, Bench, events, run, running


def test_a_job_gets_all_it_needs_and_trains(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        assert (bench.status["attempt"], bench.status["ready"]) == (1, "2/2")
        assert bench.condition("Accepted")["status"] == "True"
        assert SERVICE in bench.api.objects
        prepare = next(c for c in bench.sidecars[bench.pods()[0]].commands if c.kind == "prepare")
        assert [m.first_rank for m in prepare.members] == [0, 1]
        assert [m.host for m in prepare.members] == [s.host for s in bench.sidecars.values()]
        await until(lambda: any("/events/" in path for path in bench.api.objects))

    run(tmp_path, story)


def test_the_intent_is_in_the_status_before_anything_is_done(tmp_path):
    async def story(bench: Bench) -> None:
        await until(lambda: len(bench.pods()) == 2)
        writes = [(m, p) for m, p in bench.api.journal if m != "GET"]
        assert [m for m, _ in writes[:3]] == ["POST", "POST", "PUT"]  # Secret, Service, status
        assert [p for m, p in writes if m == "POST"].index(PODS) == 2
        assert writes.index(("PUT", f"{JOB}/status")) < writes.index(("POST", PODS))

    run(tmp_path, story)


def test_without_a_written_status_nothing_is_done(tmp_path):
    async def story(bench: Bench) -> None:
        def refuse(method: str, path: str) -> None:
            if method == "PUT":
                raise ApiError(500, "InternalError", "no")

        bench.api.refusals.append(refuse)
        await until(lambda: bench.metrics.registry.get_sample_value("holdfast_reconcile_errors_total") >= 2)
        assert bench.pods() == []
        bench.api.refusals.clear()
        await until(lambda: len(bench.pods()) == 2)

    run(tmp_path, story)


def test_an_operator_that_was_killed_goes_on_where_it_was(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        before, pods = status.restore(bench.status), bench.pods()
        streams = {name: s.streams for name, s in bench.sidecars.items()}
        await bench.kill()
        for sidecar in bench.sidecars.values():
            sidecar.commands.clear()
        bench.start()
        for name in pods:
            bench.reconciler.pods.event(None, bench.api.objects[f"{PODS}/{name}"])
        await until(lambda: all(s.streams > streams[name] for name, s in bench.sidecars.items()))
        await bench.steps(9)
        await until(lambda: bench.status.get("step") == 9)
        after = status.restore(bench.status).planner
        assert (after.attempt, after.workers, after.history) == (1, before.planner.workers, before.planner.history)
        assert bench.pods() == pods
        assert [c for s in bench.sidecars.values() for c in s.commands] == []  # nobody was disturbed

    run(tmp_path, story)


def test_another_interval_reaches_the_sidecars_and_the_status_and_is_told(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        prepare = next(c for c in bench.sidecars[bench.pods()[0]].commands if c.kind == "prepare")
        assert prepare.every == 1
        for sidecar in bench.sidecars.values():
            await sidecar.say(
                dataclasses.replace(sidecar.state, every=1, step_seconds=0.5, cost_seconds=0.05, capture="sync: why")
            )
        body = copy.deepcopy(bench.api.objects[JOB])
        body["spec"]["checkpoint"]["every"] = {"seconds": 60}
        bench.change(body)
        coordinator = bench.sidecars[bench.pods()[0]]
        await until(lambda: any((c.kind, c.attempt, c.every) == ("interval", 1, 128) for c in coordinator.commands))
        for sidecar in bench.sidecars.values():
            await sidecar.say(dataclasses.replace(sidecar.state, every=128))
        await until(lambda: bench.status.get("snapshots", {}).get("capture") == "sync: why")
        assert bench.status["snapshots"]["steps"] == 128
        assert bench.status["snapshots"]["reason"].endswith("every 128 steps of 450 ms, to have one each 60 s")
        await until(lambda: events(bench, "SnapshotInterval") == 1)
        told = [c for s in bench.sidecars.values() for c in s.commands if c.kind == "interval"]
        writes = [p for m, p in bench.api.journal if m == "PUT"]
        for seconds in (0.0501, 0.0502, 0.0503):
            for sidecar in bench.sidecars.values():
                await sidecar.say(dataclasses.replace(sidecar.state, cost_seconds=seconds))
            bench.reconciler.wake()
            await until(lambda: all(s.state.cost_seconds == seconds for s in bench.sidecars.values()))  # noqa: B023
        await bench.kill()
        assert [c for s in bench.sidecars.values() for c in s.commands if c.kind == "interval"] == told
        assert len([p for m, p in bench.api.journal if m == "PUT"]) <= len(writes) + 1, "digits are not written"

    run(tmp_path, story)


def test_a_dead_process_is_recovered_and_counted(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        first = bench.sidecars[bench.pods()[0]]
        dead = RankState(0, "exited", signal=9, step=3)
        await first.say(dataclasses.replace(first.state, ranks=(dead,), phase="exited"))
        await bench.obey(2, 7)
        await until(lambda: bench.status.get("recoveries") == 1)
        assert bench.status["lastRecovery"]["reason"] == "ProcessDied"
        assert bench.status["restarts"]["process"] == 1
        labels = {"namespace": "team", "job_name": "gpt", "cause": "ProcessDied", "level": "none"}
        assert bench.metrics.registry.get_sample_value("holdfast_recoveries_total", labels) == 1.0
        assert bench.metrics.registry.get_sample_value("holdfast_jobs", {"phase": "Running"}) == 1.0

    run(tmp_path, story)


def test_somebody_elses_write_is_noticed_before_acting(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        other = status.restore(bench.status)
        planner = dataclasses.replace(other.planner, attempt=7, message="written by another operator")
        document = bench.status | {"internal": status.wire.dumps(dataclasses.replace(other, planner=planner)).decode()}
        bench.api.put(JOB, bench.api.objects[JOB] | {"status": document})  # no watch event: the conflict must tell
        first = bench.sidecars[bench.pods()[0]]
        await first.say(dataclasses.replace(first.state, ranks=(RankState(0, "exited", exit_code=1, step=3),)))
        await until(lambda: bench.status.get("attempt", 0) >= 7)
        assert not [c for c in first.commands if c.attempt in (2, 3, 4, 5, 6)]

    run(tmp_path, story)


@pytest.mark.slow
def test_progress_alone_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "_SLOW", 2.0)

    async def story(bench: Bench) -> None:
        await running(bench)
        await until(lambda: bench.status.get("step") == 3)
        before = len(bench.api.written("PUT"))
        for step in range(4, 34):
            await bench.steps(step)
            await asyncio.sleep(0.05)
        assert len(bench.api.written("PUT")) - before <= 2
        await until(lambda: bench.status.get("step") == 33)

    run(tmp_path, story)


@pytest.mark.slow
def test_a_refused_pod_is_a_condition_and_heals(tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "_FIRST", 0.2)

    async def story(bench: Bench) -> None:
        def quota(method: str, path: str) -> None:
            if (method, path) == ("POST", PODS):
                raise ApiError(403, "Forbidden", "exceeded quota: small")

        bench.api.refusals.append(quota)
        await until(lambda: bench.condition("Accepted").get("reason") == "PodRejected")
        assert "exceeded quota: small" in bench.condition("Accepted")["message"]
        bench.api.refusals.clear()
        await until(lambda: len(bench.pods()) == 2)
        await until(lambda: bench.condition("Accepted").get("status") == "True")

    run(tmp_path, story)


def test_an_invalid_spec_is_a_condition_and_heals(tmp_path):
    async def story(bench: Bench) -> None:
        good = bench.api.objects[JOB]
        bad = good | {"spec": good["spec"] | {"failurePolicy": {"restarts": {"window": "soon"}}}}
        bench.change(bad)
        await until(lambda: bench.condition("Accepted").get("reason") == "InvalidSpec")
        assert "spec.failurePolicy.restarts.window" in bench.condition("Accepted")["message"]
        assert bench.pods() == []
        bench.change(bench.api.objects[JOB] | {"spec": good["spec"]})
        await until(lambda: len(bench.pods()) == 2)

    run(tmp_path, story)


def test_the_number_of_ranks_can_not_change_under_way(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        body = bench.api.objects[JOB]
        bench.change(body | {"spec": body["spec"] | {"workers": body["spec"]["workers"] | {"processesPerPod": 2}}})
        await until(lambda: bench.condition("Accepted").get("reason") == "InvalidSpec")
        assert "started with 2 ranks" in bench.condition("Accepted")["message"]
        assert bench.status["phase"] == "Running"

    run(tmp_path, story)


def test_a_deleted_secret_comes_back_with_the_same_key(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        streams = [s.streams for s in bench.sidecars.values()]
        key = bench.api.objects.pop(SECRET)["data"]
        bench.reconciler._belongings.distrust()
        bench.reconciler.wake()
        await until(lambda: SECRET in bench.api.objects)
        assert bench.api.objects[SECRET]["data"] == key
        assert [s.streams for s in bench.sidecars.values()] == streams  # connections stay

    run(tmp_path, story)


def test_leftovers_of_an_earlier_job_are_replaced(tmp_path):
    async def story(bench: Bench) -> None:
        await until(lambda: SERVICE in bench.api.objects)
        await bench.kill()
        for path in (SECRET, SERVICE):
            bench.api.objects[path]["metadata"]["ownerReferences"][0]["uid"] = "an-earlier-job"
        old = bench.api.objects[SECRET]["data"]["ca.crt"]
        bench.start()
        await until(lambda: bench.api.objects.get(SECRET, {}).get("data", {}).get("ca.crt", old) != old)
        await until(lambda: SERVICE in bench.api.objects and objects.owned_by(bench.api.objects[SERVICE], bench.uid))

    run(tmp_path, story)


def test_somebody_elses_secret_is_left_alone(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.kill()
        bench.api = bench.events._api = FakeApi()  # type: ignore[assignment]
        bench.api.put(JOB, job())
        theirs = {"metadata": {"name": "gpt-holdfast-tls"}, "data": {"x": base64.b64encode(b"y").decode()}}
        bench.api.put(SECRET, theirs)
        bench.start()
        await until(lambda: bench.condition("Accepted").get("reason") == "NameTaken")
        assert "delete it, or give the job another name" in bench.condition("Accepted")["message"]
        assert bench.api.objects[SECRET]["data"] == theirs["data"]
        assert bench.pods() == []

    run(tmp_path, story)


def test_pods_of_a_failed_job_are_ended_but_kept(tmp_path):
    async def story(bench: Bench) -> None:
        body = bench.api.objects[JOB]
        bench.change(body | {"spec": body["spec"] | {"failurePolicy": {"restarts": {"limit": 0}}}})
        await running(bench)
        first = bench.sidecars[bench.pods()[0]]
        await first.say(dataclasses.replace(first.state, ranks=(RankState(0, "exited", exit_code=1, step=3),)))
        await until(lambda: bench.status.get("phase") == "Failed")
        ended = lambda: [bench.api.objects[f"{PODS}/{n}"]["spec"].get("activeDeadlineSeconds") for n in bench.pods()]  # noqa: E731
        await until(lambda: ended() == [1, 1])
        assert bench.condition("Failed")["status"] == "True"

    run(tmp_path, story)


def test_a_job_that_is_gone_ends_its_loop(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        del bench.api.objects[JOB]
        bench.reconciler.keeper.distrust()
        bench.reconciler.wake()
        await asyncio.wait_for(bench.tasks[0], 10)
        assert bench.metrics.registry.get_sample_value("holdfast_jobs", {"phase": "Running"}) is None

    run(tmp_path, story)


def test_a_job_being_deleted_gets_no_pods(tmp_path):
    async def story(bench: Bench) -> None:
        await until(lambda: len(bench.pods()) == 2)
        body = bench.api.objects[JOB]
        bench.change(body | {"metadata": body["metadata"] | {"deletionTimestamp": "2027-01-15T08:00:00Z"}})
        await until(lambda: "deletionTimestamp" in bench.reconciler.keeper.body["metadata"])
        created = len(bench.api.written("POST"))
        for name in bench.pods():
            gone = bench.api.objects.pop(f"{PODS}/{name}")
            bench.reconciler.pods.event("DELETED", gone)
        bench.reconciler.wake()
        await asyncio.sleep(0.3)
        assert len(bench.api.written("POST")) == created

    run(tmp_path, story)


def test_a_corrected_spec_replaces_only_pods_that_can_not_come_up(tmp_path):
    async def story(bench: Bench) -> None:
        await until(lambda: len(bench.pods()) == 2)
        first, second = bench.pods()
        waiting = {"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
        bench.show(first, {"phase": "Pending", "containerStatuses": [waiting]})
        bench.show(second, {"phase": "Running"})
        await until(lambda: "ImagePullBackOff" in bench.status.get("message", ""))
        assert bench.pods() == [first, second]  # not yet: nothing says that another pod would fare better
        body = job(checkpoint={"memory": {"size": "auto", "slots": 3}, "stores": []})
        body["spec"]["workers"]["template"]["spec"]["containers"][0]["image"] = "trainer:2"
        bench.change(bench.api.objects[JOB] | {"spec": body["spec"]})
        await until(lambda: first not in bench.pods())
        assert second in bench.pods()

    run(tmp_path, story)


def test_a_spoilt_status_stops_everything_until_it_is_restored(tmp_path):
    async def story(bench: Bench) -> None:
        await running(bench)
        good = bench.status
        bench.change(bench.api.objects[JOB] | {"status": good | {"internal": '{"planner": {"attempt": "x"}}'}})
        await until(lambda: bench.condition("Accepted").get("reason") == "StatusUnreadable")
        for sidecar in bench.sidecars.values():  # a death that would call for a new attempt
            dead = RankState(sidecar.state.index, "exited", signal=9, step=3)
            await sidecar.say(dataclasses.replace(sidecar.state, ranks=(dead,)))
        passes = bench.metrics.registry.get_sample_value("holdfast_reconcile_seconds_count")
        bench.reconciler.wake()
        await until(lambda: bench.metrics.registry.get_sample_value("holdfast_reconcile_seconds_count") > passes)
        assert "internal" in bench.status
        assert bench.condition("Accepted")["reason"] == "StatusUnreadable"
        assert {c.attempt for s in bench.sidecars.values() for c in s.commands} == {1}
        bench.change(bench.api.objects[JOB] | {"status": good})
        await until(lambda: bench.status.get("attempt") == 2)

    run(tmp_path, story)


def test_a_forbidden_secret_is_a_condition_and_heals(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.kill()

        def quota(method: str, path: str) -> None:
            if method == "POST" and path.endswith("/secrets"):
                raise ApiError(403, "Forbidden", "exceeded quota: secrets")

        bench.api.refusals.append(quota)
        bench.api.objects.pop(SECRET, None)
        bench.start()
        await until(lambda: bench.condition("Accepted").get("reason") == "Rejected")
        assert "exceeded quota: secrets" in bench.status["message"]
        bench.api.refusals.clear()
        bench.reconciler.wake()
        await until(lambda: len(bench.pods()) == 2)

    run(tmp_path, story)
