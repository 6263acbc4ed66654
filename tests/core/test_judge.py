"""When a pod counts as lost: a table of what is known of it, and what follows. Node 1 runs pod 1, and so on."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.knock import answered
from holdfast_core.messages import AgentState
from holdfast_core.planner import Cause, Job, PodView, Policy, reasons
from holdfast_core.planner.judge import lost, stranded, suspicious, watchers

LOST = reasons.POD_UNREACHABLE
ATTEMPT = 3
JOB = Job("team", "gpt", "0123456789", 4, peers=PeersConfig())


def pod(index: int, age: float | None, silent: dict[int, float] | None = None, attempt: int = ATTEMPT, **more) -> PodView:
    """A pod that was heard `age` seconds ago; `silent` is what its sidecar says of those that it watches."""
    state = AgentState("u", f"p{index}", index, attempt, phase="running", launcher=True, silent=silent or {})
    known = {"phase": "Running", "node": f"n{index}", "ip": "10.0.0.1", "domain": f"n{index}"}
    return PodView(f"p{index}", index, 1, agent=state, agent_age=age, **(known | more))


DEAF = {1: 1.4}  # pod 1 has not answered for that long


@dataclass
class Case:
    """Pod 1 is silent for `age`; pods 0, 2 and 3 say what they say, each heard `word` seconds ago."""

    name: str
    expected: str | None
    age: float = 2.2
    unanswered: int = 2
    others: tuple[dict[int, float], ...] = (DEAF, DEAF, DEAF)
    word: float = 0.3
    more: dict[str, object] = field(default_factory=dict)
    evidence: str = ""

    def cause(self):
        suspect = pod(1, self.age, unanswered=self.unanswered, **self.more)
        pods = [suspect, *(pod(i, self.word, silent) for i, silent in zip((0, 2, 3), self.others, strict=False))]
        pods.sort(key=lambda p: p.index)
        return lost(suspect, pods, Policy(), watchers(suspect, pods, JOB, ATTEMPT))


CASES = [
    # --- a dead node: its peers and the operator agree
    Case("a dead node", LOST, evidence="2 knocks at its port got no answer"),
    Case("a dead node, a moment too early", None, age=1.9),
    Case("a dead node, knocked at once so far", None, unanswered=1),
    Case("a dead node whose peers have only begun to wonder", None, others=({1: 0.6}, {1: 0.6}, {1: 0.6})),
    Case("a dead node: one of its peers is enough, if it is all there is", LOST, others=(DEAF,)),
    Case("what Kubernetes knows is quoted", LOST, more={"node_lease_age": 7.0}, evidence="renewed its lease 7 s ago"),
    # --- a node at 100% CPU: nothing runs, the kernel answers
    Case("a starved node", None, age=40.0, unanswered=0, more={"answers": True, "dial_failures": 9}),
    Case("a starved node whose starved peers don't hear it", None, age=40.0, unanswered=0, more={"answers": True}),
    Case(
        "a sidecar that hangs for a minute is given up",
        LOST,
        age=61.0,
        unanswered=0,
        others=({}, {}, {}),
        more={"answers": True, "dial_failures": 9},
        evidence="its node answers, its sidecar does not",
    ),
    # --- the operator is cut off from a pod that its peers hear
    Case("a cut-off operator", None, age=8.0, unanswered=9, others=({}, {}, {}), more={"dial_failures": 3}),
    Case("a cut-off operator, and one witness who lies", None, age=8.0, others=(DEAF, {}, {}), more={"dial_failures": 3}),
    Case("a cut-off operator, all but one witness lie", None, age=8.0, others=(DEAF, DEAF, {}), more={"dial_failures": 3}),
    Case(
        "a cut-off operator, until the node's lease is old",
        reasons.NODE_LOST,
        age=22.0,
        unanswered=9,
        others=({}, {}, {}),
        more={"dial_failures": 9, "node_lease_age": 21.0},
        evidence="silent for 22.0 s",
    ),
    Case(
        "a cut-off operator gives up after a minute",
        LOST,
        age=61.0,
        others=({}, {}, {}),
        more={"dial_failures": 9},
        evidence="its peers hear it",
    ),
    Case("witnesses who lie can't harm a pod that is heard", None, age=0.4),
    Case("witnesses who lie can't harm a pod that answers knocks", None, unanswered=0, more={"answers": True}),
    # --- a sidecar that restarts
    Case("a restarted sidecar refuses", None, age=30.0, unanswered=0, more={"refused": True, "dial_failures": 9}),
    # --- nobody can say: the slow rule
    Case("all pods silent", None, age=8.0, word=8.0, more={"dial_failures": 3}),
    Case("all pods silent for a minute", LOST, age=61.0, word=61.0, more={"dial_failures": 9}),
    Case("stale words do not count", None, age=3.5, word=1.6),
    Case("stale words do not count, but that they came does", LOST, age=5.5, word=1.6, more={"dial_failures": 1}),
    Case("nobody confirms and no dial failed", None, age=5.5, others=({1: 0.5},), unanswered=0),
    Case("not Ready, says Kubernetes", reasons.NODE_LOST, age=2.6, unanswered=0, more={"node_ready": False}),
    Case("never heard", None, age=None, more={"dial_failures": 9}),
    # --- not a matter of silence
    Case("being deleted", reasons.POD_DELETED, age=0.1, more={"deleting": True}),
    Case("ended", reasons.POD_FAILED, age=0.1, more={"phase": "Failed"}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_who_is_lost(case: Case):
    cause = case.cause()
    assert (cause.reason if cause else None) == case.expected
    if case.evidence:
        assert any(case.evidence in line for line in cause.evidence), cause.evidence


def test_all_the_evidence_is_quoted():
    cause = Case("", LOST).cause()
    assert cause.message == "pod p1 on node n1 has been silent for 2.2 s"
    assert cause.evidence == (
        "2 knocks at its port got no answer",
        "its peers get no answer either: p0 for 1.4 s, p2 for 1.4 s, p3 for 1.4 s",
    )


def test_two_nodes_that_die_at_once_are_both_lost():
    pods = [pod(0, 0.3, {1: 1.4, 2: 1.4}), pod(1, 2.2, unanswered=2), pod(2, 2.3, unanswered=2), pod(3, 0.3, {1: 1.4, 2: 1.4})]
    found = [lost(p, pods, Policy(), watchers(p, pods, JOB, ATTEMPT)) for p in pods]
    assert [c and c.reason for c in found] == [None, LOST, LOST, None]


def test_those_whose_witnesses_died_too_are_lost_by_the_slow_rule():
    job = Job("team", "gpt", "0123456789", 4, peers=PeersConfig(group_size=2))
    pods = [pod(0, 0.3), pod(1, 0.3), pod(2, 5.2, unanswered=5, dial_failures=2), pod(3, 5.2, unanswered=5, dial_failures=2)]
    early = [replace(p, agent_age=min(p.agent_age, 4.0)) for p in pods]
    assert [lost(p, early, Policy(), watchers(p, early, job, ATTEMPT)) for p in early] == [None] * 4
    found = [lost(p, pods, Policy(), watchers(p, pods, job, ATTEMPT)) for p in pods]
    assert [c and c.reason for c in found] == [None, None, LOST, LOST]
    assert "2 other pods of the job are heard" in found[2].evidence[0]


def test_what_is_said_of_an_earlier_pod_is_not_held_against_its_successor():
    successor = pod(1, 3.0, attempt=0, unanswered=4)  # it has started, and is in no attempt yet
    pods = [pod(0, 0.3, {1: 9.0}), successor, pod(2, 0.3, {1: 9.0})]
    assert lost(successor, pods, Policy(), watchers(successor, pods, JOB, ATTEMPT + 1)) is None


def test_a_survivor_is_judged_by_the_words_of_the_attempt_that_it_was_in():
    """Gathering for the next attempt: the sidecars still watch the members of the last one."""
    pods = [pod(0, 0.3, {1: 1.4}), pod(1, 2.2, unanswered=2), pod(2, 0.3)]
    assert lost(pods[1], pods, Policy(), watchers(pods[1], pods, JOB, ATTEMPT + 1)).reason == LOST


def test_who_is_stranded_on_a_dead_node():
    gone = {1: Cause(LOST, "dead"), 2: Cause(reasons.POD_DELETED, "deleted")}
    waiting = {"phase": "Pending", "agent": None, "agent_age": None}
    sent = replace(pod(5, None), node="n1", **waiting)
    pods = [pod(1, 2.2), pod(2, 0.1), sent, replace(sent, index=6, phase="Running"), replace(pod(7, 0.1), node="n1")]
    pods += [replace(sent, index=8, node="n2"), replace(sent, index=9, node="")]
    text = "pod p5 was made before node n1 was found dead, and sent there"
    assert stranded(pods, gone, {}, 1000.0) == {5: Cause(LOST, text)}


def test_who_watches_whom():
    def watching(job: Job, index: int, **more) -> set[int]:
        pods = [pod(i, 9.0 if i == index else 0.3, **more) for i in range(6)]
        return set(watchers(pods[index], pods, job, ATTEMPT))

    assert watching(replace(JOB, replicas=6), 0) == {1, 2}  # two groups of three
    assert watching(replace(JOB, replicas=6, peers=PeersConfig(parity=0)), 0) == {1, 2, 4, 5}  # no groups: neighbours
    assert watching(replace(JOB, replicas=6), 0, attempt=ATTEMPT - 1) == set()  # told of other members


@pytest.mark.parametrize(("age", "expected"), [(None, False), (0.5, False), (0.9, True), (5.5, True), (6.5, False)])
def test_a_silent_pod_is_looked_at_often_until_it_is_known_why(age: float | None, expected: bool):
    assert suspicious(pod(1, age), Policy()) is expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, errno.ECONNREFUSED, errno.ECONNRESET), True),
        ((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT), False),
        ((errno.EMFILE, errno.EACCES, errno.EADDRNOTAVAIL, None), None),
    ],
    ids=["a kernel answered", "nobody did", "it failed here"],
)
def test_what_a_connect_tells_of_a_node(numbers: tuple[int | None, ...], expected: bool | None):
    assert [answered(number) for number in numbers] == [expected] * len(numbers)
