"""The comparison on a cluster, as far as it needs none: what counts as back, who won, the manifests, the picture."""

import json
from dataclasses import replace

import pytest
from holdfast_bench import registry
from holdfast_bench.cases import pytorchjob
from holdfast_bench.cluster import JobSpec, kubeflow, picture
from holdfast_bench.cluster.story import DELETE, KILL, POWER, Chapter, Hit, Story, Told, pauses, resumed, tell, told
from holdfast_demo.errors import WaitTimeout
from holdfast_demo.steplog import Line, Sample

AT = 100.0


def lines(*said):
    return [Line(at, text, "pod") for at, text in said]


def samples(*steps):
    return [Sample(at, step, "pod") for at, step in steps]


def test_back_is_the_first_step_of_a_process_that_began_after_the_fault():
    seen = resumed(lines((1.0, "begins with 0"), (110.0, "begins with 40")), samples((99.9, 46), (100.1, 47), (111.5, 40)), AT)
    assert (seen.at, seen.lost) == (111.5, 8)


def test_a_job_that_goes_on_until_its_pod_is_gone_is_not_back():
    assert resumed(lines((1.0, "begins with 0")), samples((101.0, 47), (120.0, 300)), AT) is None


def test_a_process_that_began_but_finished_no_step_is_not_back():
    assert resumed(lines((110.0, "begins with 40")), samples((99.9, 46), (101.0, 47)), AT) is None


def test_a_start_that_came_to_nothing_is_passed_over():
    began = lines((110.0, "begins with 40"), (130.0, "begins with 40"))
    assert resumed(began, samples((99.9, 46), (131.0, 40)), AT).at == 131.0


def hit(kind, seconds, at=20.0, limit=120.0):
    return Hit(kind, at, seconds, limit)


def pair(kind, ours, theirs):
    mine = Story([(0.0, 0), (20.0, 200), (21.0, 201)], [hit(kind, ours)], 60.0)
    peer = Story([(0.0, 0), (20.0, 200), (32.0, 190)], [hit(kind, theirs)], 60.0)
    return Told(Chapter("a chapter", (kind,), 120.0), mine, peer)


def test_the_figure_is_the_time_after_a_dead_node_and_holds_when_every_fault_was_won():
    outcome = pytorchjob.outcome([pair(KILL, 0.5, 10.0), pair(POWER, 9.0, None)], "a note")
    assert outcome.figure.value == 9.0
    assert outcome.figure.peer is None
    assert outcome.figure.holds
    assert list(outcome.figure.samples) == [0.5, 9.0]
    assert [row.ratio for row in outcome.rows] == [pytest.approx(0.05), None]
    assert "not in 120 s" in outcome.rows[1].note
    assert outcome.details["note"] == "a note"


@pytest.mark.parametrize(("ours", "theirs"), [(None, None), (None, 10.0), (11.0, 10.0)])
def test_one_lost_fault_and_it_does_not_hold(ours, theirs):
    assert not pytorchjob.outcome([pair(KILL, 0.5, 10.0), pair(POWER, ours, theirs)], "").figure.holds


def test_a_fault_that_was_not_tried_on_ours_is_lost_and_one_on_theirs_is_won():
    three = pair(KILL, 0.5, 10.0)
    three = replace(three, chapter=Chapter("three", (KILL,) * 2, 120.0))
    assert not pytorchjob.outcome([three], "").figure.holds
    three.ours.hits.append(hit(KILL, 0.6, 50.0))
    outcome = pytorchjob.outcome([three], "")
    assert outcome.figure.holds
    assert outcome.rows[1].case == f"{KILL}, time 2"
    assert "PyTorchJob: not tried" in outcome.rows[1].note


def test_it_is_measured_only_when_it_is_asked_for():
    assert "pytorchjob" not in registry.choose("")
    assert list(registry.choose("pytorchjob")) == ["pytorchjob"]


def test_a_told_chapter_comes_back_from_json():
    chapter = pair(KILL, 0.5, None)
    assert told(json.loads(json.dumps(chapter.record()))) == chapter
    alone = replace(chapter, theirs=None)
    assert told(json.loads(json.dumps(alone.record()))) == alone


def test_the_line_is_broken_at_a_recovery_and_the_pause_is_drawn_until_it():
    story = Story([(0.0, 0), (20.0, 200), (21.0, 201)], [hit(KILL, 1.0)], 60.0)
    times, steps = picture.broken(story)
    assert [time == time for time in times] == [True, True, False, True]
    assert [step for step in steps if step == step] == [0, 200, 201]
    assert pauses(story) == [(20.0, 21.0, 200)]


def test_a_job_that_never_came_back_pauses_until_it_was_left_alone():
    assert pauses(Story([(0.0, 0), (20.0, 200)], [hit(POWER, None)], 140.0)) == [(20.0, 140.0, 200)]


def test_a_job_that_went_on_until_its_pod_was_gone_says_for_how_long_it_stood_still():
    assert Hit(DELETE, 20.0, 44.0, 180.0, still=14.0).told == "44.0 s (14.0 s still)"
    assert Hit(KILL, 20.0, 16.0, 120.0, still=15.9).told == "16.0 s"


def test_both_sides_are_drawn(tmp_path):
    path = tmp_path / "x.png"
    picture.draw(path, [pair(KILL, 0.5, 10.0), pair(POWER, 9.0, None)], "a title")
    assert path.read_bytes().startswith(b"\x89PNG")


class Log:
    """A job that has made its steps already; `more` come with the recovery."""

    def __init__(self, steps):
        self.samples, self.lines = samples(*steps), []


class Scripted:
    """A side whose faults strike when they are told to."""

    def __init__(self, log, backs):
        self.log, self.backs, self.struck = log, backs, []

    def strike(self, kind):
        self.struck.append(kind)
        return self.log.samples[0].time + 20.0

    def back(self, kind, at, limit):
        answer = self.backs.pop(0)
        if answer is None:
            raise WaitTimeout("not back")
        return answer


def test_what_does_not_train_any_more_is_not_broken_again(monkeypatch):
    monkeypatch.setattr("holdfast_bench.cluster.story._AFTER", 0.0)
    side = Scripted(Log([(float(n), n) for n in range(40)]), [None])
    story = tell(side, Chapter("three", (KILL, KILL, DELETE), 5.0))
    assert side.struck == [KILL]
    assert [h.told for h in story.hits] == ["not in 5 s"]
    assert story.steps[0] == (0.0, 0)


def manifest():
    return kubeflow.PyTorchSpec("gpt", "here", "checkpoints", "/torch", "10.0.0.7").manifest()


def test_only_the_workers_are_told_where_the_master_is():
    replicas = manifest()["spec"]["pytorchReplicaSpecs"]
    assert {name: r["replicas"] for name, r in replicas.items()} == {"Master": 1, "Worker": 2}
    assert {r["restartPolicy"] for r in replicas.values()} == {"OnFailure"}
    assert "hostAliases" not in replicas["Master"]["template"]["spec"]
    assert replicas["Worker"]["template"]["spec"]["hostAliases"] == [{"ip": "10.0.0.7", "hostnames": ["gpt-master-0"]}]


def test_nothing_but_the_job_is_set_in_a_plain_pod():
    pod = manifest()["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert set(pod) == {"containers", "volumes", "affinity"}
    assert [c["name"] for c in pod["containers"]] == ["pytorch"]


def test_the_script_of_the_peer_runs_without_holdfast():
    data = kubeflow.scripts("here")["data"]
    assert "import holdfast" not in data["job.py"]
    assert not data["holdfast.py"].strip()


def test_the_overlay_points_at_the_operators_own_manifests(tmp_path):
    base = tmp_path / "module" / "manifests"
    folder = tmp_path / "overlay"
    folder.mkdir()
    kubeflow.kustomize(folder, base)
    overlay = json.loads((folder / "kustomization.yaml").read_text())
    assert overlay["resources"] == ["../module/manifests"]
    assert "{{.MasterAddr}}" in (folder / "initContainer.yaml").read_text()


def test_a_job_spec_says_what_the_demos_has_no_words_for():
    spec = JobSpec(
        "gpt", "here", "image", ("python3",), checkpoint={"peers": {"groupSize": 3, "parity": 1}}, workers={"spares": 1}
    )
    made = spec.manifest()["spec"]
    assert made["checkpoint"] == {"stores": [], "peers": {"groupSize": 3, "parity": 1}}
    assert made["workers"]["replicas"] == 3
    assert made["workers"]["spares"] == 1
