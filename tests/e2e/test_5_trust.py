"""What others can see and do: the sidecars' API refuses strangers, pods hold no API token, every panel has data."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from charts.live_panels import check_panels
from holdfast_core.config import API_PORT, TLS_NAME
from holdfast_demo import faults, measure
from holdfast_demo.faults import Scene
from holdfast_demo.waiting import wait_for

from . import clients
from .site import Say, Site, recovery

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def _ask(address: str, context: ssl.SSLContext | None) -> bytes:
    """All that a request for the sidecar's state gets for an answer; nothing if the connection is refused or cut."""
    answer = b""
    try:
        with socket.create_connection((address, API_PORT), timeout=5) as plain:
            stream = context.wrap_socket(plain, server_hostname=TLS_NAME) if context else plain
            with stream:
                stream.sendall(f"GET /v1/state HTTP/1.1\r\nHost: {TLS_NAME}\r\nConnection: close\r\n\r\n".encode())
                while piece := stream.recv(4096):
                    answer += piece
    except TimeoutError:
        raise
    except OSError:  # an alert, a reset
        return answer
    return answer


def test_the_sidecar_talks_to_holders_of_the_jobs_certificate_only(training: Scene, tmp_path: Path) -> None:
    address = training.job.need_pod(1)["status"]["podIP"]
    answer = _ask(address, clients.member(training, tmp_path))
    assert b" 200 " in answer.splitlines()[0], "what follows would pass on a dead port too"
    assert _ask(address, clients.anybody()) == b"", "a client without a certificate was answered"
    assert _ask(address, clients.stranger(tmp_path)) == b"", "a client with a certificate of another authority was answered"
    assert b"200" not in _ask(address, None), "plain HTTP was answered"


def test_pods_hold_no_api_token_and_sidecars_no_privileges(training: Scene) -> None:
    for pod in training.job.pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not [v for v in spec["volumes"] if "projected" in v]
        sidecar = next(c for c in spec["initContainers"] if c["name"] == faults.SIDECAR)
        security = sidecar["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["runAsNonRoot"] is True
        trainer = next(c for c in spec["containers"] if c["name"] == "trainer")
        assert not [m for m in trainer["volumeMounts"] if "tls" in m["name"] or "store" in m["name"]]


@pytest.fixture
def protected(site: Site) -> Iterator[Scene]:
    """A job of its own with peers' RAM, which panels show too; the long job does without."""
    scene = site.start(site.spec("panels", peers={"groupSize": 3, "parity": 1}))
    yield scene
    site.end(scene)


def test_every_panel_of_the_dashboard_has_data_after_a_recovery(protected: Scene, site: Site, say: Say) -> None:
    url = site.cluster.prometheus()
    protected.job.wait_steps(20, 180, time.time())
    before = measure.look(protected.job)
    outcome = recovery(protected, say, "SIGKILL, watched by Prometheus", before, faults.kill_rank(protected, 1), 60)
    assert outcome.level == "memory"

    def empty() -> list[str]:
        try:
            return check_panels(url, site.namespace, protected.job.name)
        except OSError as error:
            return [f"Prometheus: {error}"]

    wait_for(lambda: not empty(), 60, "data in every panel", every=2.0, seen=empty)
