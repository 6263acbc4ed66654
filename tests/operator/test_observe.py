"""Why a pod is not up, and how it is seen: a table of pods as the API server shows them."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast_core.messages import AgentState, RankState
from holdfast_core.planner import PodView
from holdfast_operator import observe
from holdfast_operator.observe import Heard, NodeHealth

NOW = 1_800_000_100.0
CREATED = "2027-01-15T08:00:00Z"  # 100 s before


def pod(status: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    labels = {"holdfast.dev/index": "1", "holdfast.dev/incarnation": "2"}
    return {
        "metadata": {"name": "gpt-1", "labels": labels, "creationTimestamp": CREATED, **meta},
        "spec": {"nodeName": "n1"},
        "status": status or {"phase": "Running", "podIP": "10.0.0.1"},
    }


def view(body: dict[str, Any], heard: Heard | None = None, note: str = "", node: NodeHealth | None = None) -> PodView:
    made = observe.pod_view(body, heard or Heard(), node or NodeHealth(), note, NOW)
    assert made is not None
    return made


def waiting(name: str, reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}, **more}


def pending(**status: Any) -> dict[str, Any]:
    return pod({"phase": "Pending", **status})


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (pod(), ""),
        (pending(), ""),
        (pending(containerStatuses=[waiting("trainer", "PodInitializing")]), ""),
        (
            pending(initContainerStatuses=[waiting("holdfast-sidecar", "ErrImagePull", 'pull "x"\n  not found')]),
            'ErrImagePull: container holdfast-sidecar: pull "x" not found',
        ),
        (
            pending(
                initContainerStatuses=[{"name": "holdfast-sidecar", "state": {"running": {}}}],
                containerStatuses=[waiting("trainer", "ImagePullBackOff", "back-off")],
            ),
            "ImagePullBackOff: container trainer: back-off",
        ),
        (
            pending(initContainerStatuses=[waiting("holdfast-sidecar", "CreateContainerConfigError", 'secret "s3" not found')]),
            'CreateContainerConfigError: container holdfast-sidecar: secret "s3" not found',
        ),
        (
            pod(
                {
                    "phase": "Running",
                    "initContainerStatuses": [
                        waiting(
                            "holdfast-sidecar",
                            "CrashLoopBackOff",
                            "back-off 10s",
                            lastState={"terminated": {"exitCode": 1, "reason": "Error"}},
                        )
                    ],
                }
            ),
            "CrashLoopBackOff: container holdfast-sidecar: back-off 10s (last exit code 1: Error)",
        ),
        (
            pending(conditions=[{**UNSCHEDULED, "message": 'persistentvolumeclaim "x" not found'}]),
            'Unschedulable: persistentvolumeclaim "x" not found',
        ),
        (pod({"phase": "Failed", "reason": "Evicted", "message": "out of memory"}), "Evicted: out of memory"),
    ],
)
def test_waiting(body: dict[str, Any], text: str):
    assert view(body).waiting == text


def test_a_posted_warning_counts_only_while_nothing_runs():
    note = 'FailedMount: MountVolume.SetUp failed for volume "holdfast-tls"'
    assert view(pending(), note=note).waiting == note
    assert view(pod(), note=note).waiting == ""


def test_identity_and_node():
    made = view(pod(deletionTimestamp=CREATED), node=NodeHealth(False, 33.0))
    assert (made.index, made.incarnation, made.node, made.ip, made.port) == (1, 2, "n1", "10.0.0.1", 7470)
    assert (made.deleting, made.age, made.node_ready, made.node_lease_age) == (True, 100.0, False, 33.0)


@pytest.mark.parametrize(("made", "age"), [(f"{NOW - 3.5}", 3.5), (f"{NOW + 9}", 0.0), ("soon", 100.0), ("", 100.0)])
def test_a_pods_age_is_told_by_the_operators_own_clock_where_it_made_it(made: str, age: float):
    """To fractions of a second: whether it was made before or after a node was found dead."""
    assert view(pod(creationTimestamp=CREATED, annotations={"holdfast.dev/made": made})).age == pytest.approx(age)


def test_a_spare_has_its_number_and_no_index_whatever_its_labels_say_it_took():
    spare = pod()
    spare["metadata"]["labels"] = {"holdfast.dev/spare": "7", "holdfast.dev/incarnation": "1"}
    assert (view(spare).spare, view(spare).index, view(spare).incarnation) == (7, -1, 1)
    spare["metadata"]["labels"]["holdfast.dev/index"] = "3"
    assert (view(spare).spare, view(spare).index) == (7, -1)


def test_knocks_and_domain_are_passed_on():
    made = observe.pod_view(pod(), Heard(answers=True, unanswered=3), NodeHealth(), "", NOW, "zone-a")
    assert made is not None
    assert (made.answers, made.unanswered, made.domain) == (True, 3, "zone-a")


def test_a_pod_without_our_labels_is_none_of_ours():
    stranger = pod()
    stranger["metadata"]["labels"] = {"holdfast.dev/index": "x", "holdfast.dev/incarnation": "1"}
    assert observe.pod_view(stranger, Heard(), NodeHealth(), "", NOW) is None


def test_idle_time_goes_on_while_nothing_is_heard():
    ranks = (RankState(0, "running", idle_seconds=1.0), RankState(1, "exited", exit_code=0, idle_seconds=1.0))
    agent = view(pod(), Heard(AgentState("u", "gpt-1", 1, 1, ranks=ranks), age=2.0)).agent
    assert agent is not None
    assert [r.idle_seconds for r in agent.ranks] == [3.0, 1.0]


def test_a_started_sidecar_that_never_answers_is_silent_since_the_first_dial():
    started = pod({"phase": "Running", "initContainerStatuses": [{"name": "holdfast-sidecar", "started": True}]})
    assert view(started, Heard(failures=3, dialling=30.0)).agent_age == 30.0
    assert view(started, Heard(failures=1, dialling=3.0)).agent_age is None  # give it a moment
    assert view(pod(), Heard(failures=3, dialling=30.0)).agent_age is None  # not started: not expected to answer


def test_a_sidecar_that_answers_wrongly_is_told():
    heard = Heard(failures=9, refused=True, dialling=30.0, error="certificate verify failed")
    started = pod({"phase": "Running", "initContainerStatuses": [{"name": "holdfast-sidecar", "started": True}]})
    assert view(started, heard).waiting == "SidecarUnreachable: certificate verify failed"
    assert view(pod(), heard).waiting == ""  # it still starts
