"""How protection is told: in the words of what may be lost, which is a node unless the job names a label of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from holdfast_core.planner import Job, Observed, plan, reasons

from .world import World
from .world_parts import job

ZONE = "topology.kubernetes.io/zone"


def told(topology: str, domains: list[str], **shape):
    """Condition and message of a job that trains, whose pods are in these domains, on nodes n0, n1, ..."""
    made = replace(job(replicas=len(domains), **{"parity": 1} | shape), topology=topology)
    world = World(made)
    world.run_to_step(13)
    pods = tuple(replace(world._view(p), domain=domains[p.index]) for p in world.pods.values())
    status = plan(made, Observed(pods), world.status, world.now).status
    return next(c for c in status.conditions if c.type == reasons.PROTECTED), status.protection.message


@pytest.mark.parametrize(
    ("topology", "word"),
    [(Job.topology, "node"), (ZONE, "zone"), ("rack", "rack"), ("example.com/power-feed", "power-feed")],
)
def test_what_may_be_lost_is_called_by_its_name(topology: str, word: str):
    found, message = told(topology, ["a", "b", "c"])
    assert found.message.startswith(f"any {word} may be lost without losing the protected step")
    assert message.startswith(f"any {word} may be lost: step ")
    two, more = told(topology, ["a", "b", "c", "d"], parity=2)
    assert (two.message[:5], more[:5]) == ("any 2", "any 2")
    assert f"any 2 {word}s may be lost" in two.message
    assert f"any 2 {word}s may be lost" in more


def test_a_crowded_domain_is_called_by_its_name():
    found, _ = told(ZONE, ["a", "a", "b"])
    assert (found.status, found.reason) == (False, "SharedNode")
    assert found.message == "zone a runs more pods of a group than may be lost: the job needs more zones, or more parity"


def test_nodes_without_the_label_are_told():
    found, _ = told(ZONE, ["a", "n1", "n2"])
    assert (found.status, found.reason) == (True, "TopologyUnknown")
    assert found.message.endswith(f"; no label {ZONE} is known of n1, n2: each counts by itself")
    crowded, _ = told(ZONE, ["a", "a", "n2"])
    assert (crowded.status, crowded.reason) == (False, "SharedNode")
    assert crowded.message.endswith(f"no label {ZONE} is known of n2: each counts by itself")
    assert told(Job.topology, ["n0", "n1", "n2"])[0].reason == "PeersHoldParity"
