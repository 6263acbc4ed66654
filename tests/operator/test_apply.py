"""Orders carried out on pods."""

from __future__ import annotations

import asyncio
import time

from fake_api import FakeApi
from holdfast_core.planner import CreatePod, CreateSpare
from holdfast_operator import observe, spec
from holdfast_operator.apply import Applier
from holdfast_operator.cache import PodCache
from holdfast_operator.settings import Settings
from operator_samples import job


def test_each_pod_says_when_it_was_made():
    cache, before = PodCache(), time.time()
    applier = Applier(FakeApi(), Settings("sidecar:1"), cache)  # type: ignore[arg-type]
    asyncio.run(applier.apply(spec.parse(job()), 0, [CreatePod(0, 1), CreateSpare(1)]))
    ages = [observe.age(p["metadata"], before + 60.0) for p in cache.pods]
    assert len(ages) == 2
    assert all(55.0 < age <= 60.01 for age in ages)
    assert all(p["metadata"]["annotations"]["note"] == "kept" for p in cache.pods)
