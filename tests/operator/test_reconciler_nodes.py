"""Spares, dead nodes and failure domains in the loop of a job."""

from __future__ import annotations

import dataclasses
import re
import time

from holdfast_core import config
from holdfast_core.planner import NodeFailure
from holdfast_operator import spec, status
from holdfast_operator.settings import Settings
from operator_waiting import unanswering, until
from reconciler_bench import JOB, PODS, Bench, events, run, with_spec


def test_a_spare_is_kept_warm_and_takes_a_lost_pods_place_and_label(tmp_path):
    async def story(bench: Bench) -> None:
        with_spec(bench, workers={"spares": 1})
        await until(lambda: len(bench.pods()) == 2)
        bench.schedule()
        await until(lambda: len(bench.pods()) == 3)
        bench.schedule()
        lost, _, spare = bench.pods()
        assert spare == "gpt-0a1b2-s1-1"
        await bench.kubelet()
        await bench.obey(1, 3)
        await until(lambda: bench.status.get("spares") == "1/1")
        assert bench.status["ready"] == "2/2"
        assert "holdfast.dev/index" not in bench.api.objects[f"{PODS}/{spare}"]["metadata"]["labels"]
        await bench.sidecars.pop(lost).stop()
        bench.reconciler.pods.event("DELETED", bench.api.objects.pop(f"{PODS}/{lost}"))
        bench.reconciler.wake()
        await until(lambda: any(c.kind == "prepare" for c in bench.sidecars[spare].commands))
        prepare = next(c for c in bench.sidecars[spare].commands if c.kind == "prepare")
        assert [(m.index, m.pod) for m in prepare.members] == [(0, spare), (1, "gpt-0a1b2-1-1")]
        await until(lambda: bench.api.objects[f"{PODS}/{spare}"]["metadata"]["labels"].get("holdfast.dev/index") == "0")
        await until(lambda: "gpt-0a1b2-s2-1" in bench.pods())
        assert "gpt-0a1b2-0-2" not in bench.pods()
        await until(lambda: events(bench, "SpareTaken") == 1)
        assert bench.status["spares"] == "0/1"

    run(tmp_path, story)


def test_a_dead_node_is_left_within_seconds_and_not_gone_to_again(tmp_path):
    """Its stream stays open and silent, nothing answers at its address, and its peer does not hear it either."""

    async def story(bench: Bench) -> None:
        await until(lambda: len(bench.pods()) == 2)
        for name in ("n0", "n1"):  # Kubernetes knows nothing of it yet
            status_of = {"conditions": [{"type": "Ready", "status": "True"}]}
            bench.api.put(f"/api/v1/nodes/{name}", {"metadata": {"name": name}, "status": status_of})
        bench.schedule()
        await bench.kubelet()
        await bench.obey(1, 3)
        await until(lambda: bench.status.get("step") == 3)
        peer, dead = (bench.sidecars[name] for name in bench.pods())
        with unanswering(dead.host, config.PEER_PORT):
            dead.hold()
            await peer.say(dataclasses.replace(peer.state, silent={1: 1.2}))
            await until(lambda: "gpt-0a1b2-1-2" in bench.pods())
        planner = status.restore(bench.status).planner
        assert planner.cause is not None
        assert planner.cause.reason == "PodUnreachable"
        assert any(re.fullmatch(r"\d+ knocks at its port got no answer", line) for line in planner.cause.evidence)
        (failure,) = planner.node_failures
        assert (failure.node, failure.silence < 10.0) == ("n1", True)
        made = bench.api.objects[f"{PODS}/gpt-0a1b2-1-2"]["spec"]["affinity"]
        key = "preferredDuringSchedulingIgnoredDuringExecution"
        nodes, apart = made["nodeAffinity"][key], made["podAntiAffinity"][key]
        assert "'values': ['n1']" in str(nodes)
        (lost,) = [t for t in apart if t["weight"] == 100]
        labels = lost["podAffinityTerm"]["labelSelector"]["matchLabels"]
        assert (labels["holdfast.dev/index"], labels["holdfast.dev/incarnation"]) == ("1", "1"), "the one on the dead node"

    run(tmp_path, story)


def test_members_are_told_what_fails_together(tmp_path):
    async def story(bench: Bench) -> None:
        with_spec(bench, checkpoint={"peers": {"topologyKey": "zone"}})
        await until(lambda: len(bench.pods()) == 2)
        for number in range(2):
            bench.api.put(f"/api/v1/nodes/n{number}", {"metadata": {"name": f"n{number}", "labels": {"zone": f"z{number}"}}})
        bench.schedule()
        await until(lambda: bench.reconciler._domain("n1", spec.parse(bench.api.objects[JOB]).job) == "z1")
        await bench.kubelet()
        await bench.obey(1, 3)
        prepare = next(c for c in bench.sidecars[bench.pods()[0]].commands if c.kind == "prepare")
        assert [m.domain for m in prepare.members] == ["z0", "z1"]

    run(tmp_path, story)


def test_a_node_that_failed_too_often_is_forbidden_to_new_pods_and_tainted(tmp_path):
    async def story(bench: Bench) -> None:
        await bench.kill()
        bench.start(Settings("sidecar:1", taint_nodes=True))
        bench.api.put("/api/v1/nodes/n9", {"metadata": {"name": "n9"}, "spec": {}})
        await until(lambda: len(bench.pods()) == 2)
        record = status.restore(bench.status)
        now = time.time()
        failures = tuple(NodeFailure("n9", now - age, "PodUnreachable") for age in (60.0, 30.0))
        planner = dataclasses.replace(record.planner, node_failures=failures)
        document = bench.status | {"internal": status.wire.dumps(dataclasses.replace(record, planner=planner)).decode()}
        bench.change(bench.api.objects[JOB] | {"status": document})
        await until(lambda: bench.status.get("avoidedNodes", [{}])[0].get("node") == "n9")
        await until(lambda: bench.api.objects["/api/v1/nodes/n9"]["spec"].get("taints"))
        bench.reconciler.pods.event("DELETED", bench.api.objects.pop(f"{PODS}/{bench.pods()[0]}"))
        bench.reconciler.wake()
        await until(lambda: "gpt-0a1b2-0-2" in bench.pods())
        made = bench.api.objects[f"{PODS}/gpt-0a1b2-0-2"]["spec"]["affinity"]["nodeAffinity"]
        assert "'values': ['n9']" in str(made["requiredDuringSchedulingIgnoredDuringExecution"])

    run(tmp_path, story)
