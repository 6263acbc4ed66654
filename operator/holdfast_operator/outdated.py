"""Pods that can't come up and were made from a spec that has been changed since: replacing them is how a corrected spec heals.

A pod that runs, or that has a snapshot in its memory, is never touched: there a change waits for the next incarnation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast_core.planner import DeletePod, PodView
from holdfast_core.planner.roster import Roster

from . import names

REASON = "it does not come up, and the spec was changed since it was created"


def fingerprint(spec: Mapping[str, Any]) -> str:
    """A digest of what pods are made from. The interval of snapshots is told to those that run."""
    checkpoint = {k: v for k, v in (spec.get("checkpoint") or {}).items() if k != "every"}
    parts = [spec.get("workers", {}).get("template"), checkpoint]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def replaceable(views: Iterable[PodView], pods: Iterable[Mapping[str, Any]], roster: Roster, present: str) -> list[DeletePod]:
    """Deletions of current pods, and spares, that wait for what a newer spec may have put right."""
    made_from = {p["metadata"]["name"]: (p["metadata"].get("annotations") or {}).get(names.ANNOTATION_SPEC) for p in pods}
    current = (v for v in views if roster.as_worker(v) or roster.waits(v))
    stuck = (v for v in current if v.waiting and not v.deleting)
    empty = (v for v in stuck if v.agent is None or not any(v.agent.sealed.values()))
    return [DeletePod(v.name, REASON) for v in empty if made_from.get(v.name, present) not in (present, None)]
