"""Counterexamples as text, one action a line, and back; replayed step by step, they are tests.

train 1            ranks of attempt 1 exchange gradients of the next step
seal 0.1           the rank of pod 0, first incarnation, publishes its snapshot
power n2           a node loses power (faults are marked with a !)
"""

from __future__ import annotations

from collections.abc import Iterable

from . import liveness, operator
from .model import Model
from .scene import Scene
from .world import Action, State, Violation, World

_WORDS = {
    "obey": "it reads the coordinator's next order",
    "hear": "the coordinator reads its next word",
    "left": "the coordinator notices that its connection is gone",
    "join": "it connects to the coordinator, and tells what it has",
    "stop": "old processes are dead, void snapshots forgotten",
    "load": "it gets the source's step from a store or from peers",
    "begin": "a parity buffer is cleared to be filled",
    "encode": "its parity is whole, or it tells why not",
    "upload": "its shard is in the store, or it tells why not",
    "seal": "its rank publishes the next snapshot",
    "reap": "its kubelet ends it at last",
    "wait": "a pause is over (seconds)",
    "commit": "the coordinator writes the manifest",
    "act": "the operator carries out",
    "plan": "the operator observes, plans and writes its status",
    "late": "a late command arrives",
    "notice": "the operator sees signs that it is lost",
    "look": "the operator hears it again",
    "heal": "the node is back in the network",
    "train": "ranks of the attempt exchange gradients of the next step",
    "kill": "! its process is killed",
    "tear": "! its process is killed while it writes a slot",
    "restart": "! its sidecar is killed and comes back",
    "remove": "! it is deleted by force",
    "power": "! the node loses power",
    "part": "! the node is cut off",
    "cut": "! its connection to the coordinator breaks",
    "stall": "! what it tells the operator is late from now on",
    "misjudge": "! the operator takes it for lost",
    "flip": "! a bit of its snapshot in a slot flips (slot)",
    "damage": "! a bit of its parity flips (buffer)",
    "rot": "! a shard in the store is corrupt (copy)",
    "delay": "! this long nothing is heard of a member, or a round goes on (seconds)",
    "hang": "! the processes that are to stop do not, for long",
    "crash": "! the operator dies with orders not carried out",
    "lose": "! the operator's next command is lost",
    "stray": "! the operator's next command will arrive twice",
}


def text(world: World, script: Iterable[Action]) -> str:
    """A script to read, and to replay."""
    model = Model(world)
    lines, state = [], model.start
    for action in script:
        line = " ".join(map(str, action))
        note = _WORDS[action[0]] + _orders(model, state, action)
        lines.append(f"{line:<16} # {note}")
        try:
            state = model.apply(state, action)
        except Violation:
            break
    return "\n".join(lines)


def _orders(model: Model, state: State, action: Action) -> str:
    pending = Scene(model.shared, state).operator.pending
    if action[0] not in ("act", "lose", "stray") or not pending:
        return ""
    return f" {operator.describe(model.shared.orders.values[pending[0]])}"


def parse(script: str) -> list[Action]:
    """The actions of a text."""
    lines = (line.partition("#")[0].split() for line in script.splitlines())
    return [(words[0], *map(_value, words[1:])) for words in lines if words]


def _value(word: str) -> str | int | float:
    """Seconds are floats with a zero behind the point, labels of pods are not: no incarnation is 0."""
    if word.isdigit():
        return int(word)
    return float(word) if word.endswith(".0") else word


def outcome(world: World, script: str | Iterable[Action], *, strict: bool = True) -> str:
    """What a script breaks, or "" if after it, and once faults have ended, all is well. An action that is not possible raises
    ValueError if `strict`, else it is left out: the rules may have changed since the script was found."""
    model = Model(world)
    state = model.start
    try:
        for action in parse(script) if isinstance(script, str) else script:
            steps, broken = model.actions(state)
            if action in steps or action in broken:
                state = model.apply(state, action)
                model.check(state)
            elif strict:
                raise ValueError(f"{action} is not possible here, but {[*steps, *broken]}")
    except Violation as violation:
        return str(violation)
    return liveness.outcome(model, state, set())[0]


def test_of(world: World, name: str, violation: str, script: Iterable[Action]) -> str:
    """A test that replays a script, as text of Python."""
    body = "\n".join(f"        {line}" for line in text(world, script).splitlines())
    options = ", ".join(f"{n}={v!r}" for n, v in _options(world).items())
    return (
        f'\n\ndef test_{name.replace("-", "_")}():\n    """{violation}."""\n'
        f'    world = World("{world.name}", "", {options})\n'
        f'    script = """\n{body}\n    """\n    assert outcome(world, script, strict=False) == ""\n'
    )


def _options(world: World) -> dict[str, object]:
    plain = World("", "")
    names = [n for n in vars(world) if n not in ("name", "about", "limit")]
    changed = {n: getattr(world, n) for n in names if getattr(world, n) != getattr(plain, n)}
    if "eager" in changed:
        changed["eager"] = frozenset(sorted(world.eager))
    return {n: dict(v) if n == "faults" else v for n, v in changed.items()}
