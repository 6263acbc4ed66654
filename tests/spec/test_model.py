"""The model's own parts: scripts, states, what it leaves out."""

from __future__ import annotations

import json

import pytest
from holdfast_spec import __main__ as command
from holdfast_spec import group, liveness, operator, rules, script, sidecar, worlds
from holdfast_spec.explore import Explorer
from holdfast_spec.model import Model
from holdfast_spec.scene import Scene
from holdfast_spec.world import Pod, Slot, World

TINY = World("tiny", "two pods, a step", pods=2, steps=0, faults={"process": 1}, eager=worlds.CALM.eager | {"join"})


def end_of(world: World) -> Scene:
    model, state = Model(world), Model(world).start
    while steps := model.actions(state)[0]:
        state = model.apply(state, steps[0])
    return Scene(model.shared, state)


def test_without_faults_the_most_urgent_steps_lead_to_a_protected_last_step():
    scene = end_of(TINY)
    assert [(p.phase, p.done, p.kept.protected.step) for p in map(scene.pod, scene.places)] == [("running", 0, 0)] * 2


def test_the_planner_decides_nothing_by_what_the_view_leaves_out(monkeypatch):
    """`committed` and `protected` of a sidecar are reported, and that is all."""
    plain = Explorer(TINY).run()
    monkeypatch.setattr(operator, "_REPORTED", operator.reported)
    full = Explorer(TINY).run()
    assert (plain.states, plain.transitions, full.violation) == (full.states, full.transitions, "")


def test_a_coordinator_taken_apart_is_the_same_when_it_is_put_together():
    scene = end_of(TINY)
    frozen = scene.group(0)
    assert rules.freeze(rules.thaw(frozen), group._OBJECTS) == frozen
    assert rules.thaw(frozen).protect.committed == scene.pod(0).kept.protected


def test_a_script_is_text_and_actions_alike():
    result = Explorer(TINY).run()
    assert result.complete
    model, state, actions = Model(TINY), Model(TINY).start, []
    for _ in range(6):
        action = model.actions(state)[0][0]
        actions.append(action)
        state = model.apply(state, action)
    text = script.text(TINY, actions)
    assert script.parse(text) == actions
    assert script.outcome(TINY, text) == ""
    with pytest.raises(ValueError, match="not possible here"):
        script.outcome(TINY, "seal 0.1")


def test_a_counterexample_becomes_a_test_that_python_can_read():
    text = script.test_of(TINY, "some-bug", "I1: lost", [("plan",), ("plan",)])
    space = {"World": World, "outcome": script.outcome}
    exec(text, space)
    space["test_some_bug"]()


def test_seconds_and_pods_are_told_apart_in_scripts():
    assert script.parse("wait 0.1 9.0\nflip 1.2 0  # a bit") == [("wait", "0.1", 9.0), ("flip", "1.2", 0)]


def test_a_fenced_process_seals_nothing():
    pod = Pod(0, 1, "n", slots=(Slot(),) * 3, attempt=2, process="up", writer=1, exchanged=0)
    assert sidecar.seal(pod, skips=False) == (pod, "fenced")


def test_a_state_in_which_nothing_more_happens_is_looked_at():
    model = Model(TINY)
    assert liveness.wrong(model, model.start) == "the job is new"
    assert liveness.outcome(model, model.start, set())[0] == ""


def test_the_command_says_what_it_found(tmp_path, capsys):
    assert command.main(["--world", "kept", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["violations"] == 0
    assert found["worlds"][0]["complete"]
    assert "kept: all" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no world 'x'"):
        command.main(["--world", "x"])


def test_every_kind_of_fault_is_in_some_world():
    from holdfast_spec import faults

    assert {kind for w in (*worlds.SMALL, *worlds.LARGE) for kind in w.faults} == set(faults.KINDS)
