"""Fixtures of the end-to-end tests, and what is kept of a test that failed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from holdfast_demo import diagnose, setting
from holdfast_demo.clusters import Cluster
from holdfast_demo.faults import Scene
from holdfast_demo.jobs import Job

from .plain import run_plain
from .site import BUILD, Say, Shared, Site, make_site, plan_site

LIMIT = 900  # seconds for one test with its set-up; each wait in it has a bound of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The local cluster, up; left up if it was."""
    found = Cluster()
    if found.existing:
        pytest.skip("the end-to-end tests cut power, fill disks and kill by pid: they need the local cluster")
    was_up = found.is_up()
    if not was_up:
        found.up()
    yield found
    if not was_up:
        found.down()


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> Iterator[Site]:
    """Operator and namespace."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    namespace, release = plan_site()
    jobs: list[Job] = []
    try:
        made = make_site(cluster, namespace, release)
        jobs = made.jobs
        yield made
    finally:
        for job in list(jobs):
            job.close()
            job.delete()
        cluster.storage("on")
        cluster.storage("free")
        setting.drop_namespace(cluster, namespace, 120)
        setting.uninstall(cluster, release)


@pytest.fixture(scope="session")
def plain(site: Site) -> dict[int, set[str]]:
    """Hashes of the weights at each step of a run without faults."""
    return run_plain(site)


@pytest.fixture(scope="session")
def shared(site: Site) -> Shared:
    """The long job; not yet started."""
    return Shared(site)


@pytest.fixture
def training(shared: Shared) -> Scene:
    """The long job, training."""
    return shared.ready()


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Prints what was seen, and keeps it in build/e2e/seen.txt."""

    def write(text: str) -> None:
        print(f"SEEN {text}")
        with (BUILD / "seen.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"{request.node.name}: {text}\n")

    return write


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """On a failure, everything about every job of the session goes into build/e2e/<test>/."""
    report = yield
    if report.failed and report.when in ("setup", "call"):
        site = getattr(item, "funcargs", {}).get("site")
        if isinstance(site, Site):
            folder = BUILD / re.sub(r"[^\w.-]+", "_", item.name)
            for job in list(site.jobs):
                diagnose.dump(Scene(site.cluster, site.release, job), folder / job.name)
            report.sections.append(("diagnosis", f"logs of everything: {folder}"))
    return report
