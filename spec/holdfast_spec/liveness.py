"""Whether training goes on, and is protected, once faults have ended: from every state, by the schedule that takes the most
urgent step each time. It ends somewhere, or goes round in circles, which is as bad as ending in the wrong place."""

from __future__ import annotations

from holdfast_core.protection import Holdings
from holdfast_core.timeline import Copy

from . import rules
from .model import Model, normal
from .scene import Scene
from .world import Action, State, Violation

_LONGEST = 2000


def outcome(model: Model, state: State, good: set[State]) -> tuple[str, list[Action]]:
    """How it goes on: what is wrong in the end, if anything, and the steps to there. `good`: states from which all is well."""
    script: list[Action] = []
    seen: set[State] = set()
    while state not in seen and len(script) < _LONGEST:
        seen.add(state)
        if state in good:
            good |= seen
            return "", script
        action = next(normal(Scene(model.shared, state)), None)
        if action is None:
            problem = wrong(model, state)
            if problem:
                return f"Liveness: nothing more happens, but {problem}", script
            good |= seen
            return "", script
        script.append(action)
        try:
            state = model.apply(state, action)
            model.check(state)
        except Violation as broken:
            return str(broken), script
    return "Liveness: it goes round in circles", script


def wrong(model: Model, state: State) -> str:
    """What is missing where nothing more happens, if anything."""
    scene = Scene(model.shared, state)
    world, current = scene.world, scene.current()
    pods = [scene.pod(k) for _, k in sorted(current.items())]
    begun = scene.status.running_since is not None or _resumed_at_the_end(scene)
    if scene.status.stage != "running" or not begun or len(pods) != world.pods:
        return f"the job is {scene.status.stage}"
    if any(p.process != "up" or p.exchanged != world.steps for p in pods):
        return "training does not go on"
    last = Copy(world.steps, scene.status.attempt)
    if not all(last in rules.copies(p) for p in pods) and not _resumed_at_the_end(scene):
        found_corrupt = last in scene.ghost.whole  # the next step would make it good, but there is none any more
        return "" if found_corrupt or world.skips else "the last step is not sealed"
    if any(p.told is None or p.told.step != world.steps for p in pods):
        return "the last step is not committed"
    if world.stores and not any(c.step == world.steps for c, _ in scene.store.copies):
        return "the store does not have the last step"
    if not all(p.told in rules.copies(p) for p in pods):
        return ""  # found corrupt, as above
    held = Holdings(
        {p.index: rules.copies(p) for p in pods}, {p.index: tuple(b.parity for b in rules.buffers(p)) for p in pods}
    )
    kinds = {b.copy for entries in held.parity.values() for b in entries}
    domains = {p.index: p.node for p in pods}
    safe = not world.parity or any(rules.faults(held, c, world.pods, domains) for c in kinds)
    return "" if safe else "nothing is protected"


def _resumed_at_the_end(scene: Scene) -> bool:
    """There was nothing left to train: the last step is an earlier attempt's."""
    source = scene.status.source
    return source is not None and source.step == scene.world.steps
