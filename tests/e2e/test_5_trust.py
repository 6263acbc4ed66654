"""What others can see and do: the sidecars' API refuses strangers, pods hold no API token, every panel has data."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from charts.live_panels import check_panels
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from holdfast_core.config import API_PORT, TLS_NAME
from holdfast_demo import faults, measure
from holdfast_demo.faults import Scene
from holdfast_demo.waiting import wait_for

from .site import Say, Site, recovery

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _stranger(folder: Path) -> ssl.SSLContext:
    """A client with a certificate that looks right but was issued by nobody the job knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair = folder / "stranger.pem"
    pair.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = _context()
    context.load_cert_chain(pair)
    return context


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


def test_the_sidecar_talks_to_holders_of_the_jobs_certificate_only(training: Scene, site: Site, tmp_path: Path) -> None:
    address = training.job.need_pod(1)["status"]["podIP"]
    own = _context()
    secret = site.cluster.kube.get("Secret", site.namespace, f"{training.job.name}-holdfast-tls")["data"]
    own.load_cert_chain(_pair(secret, tmp_path))
    assert b" 200 " in _ask(address, own).splitlines()[0], "what follows would pass on a dead port too"
    assert _ask(address, _context()) == b"", "a client without a certificate was answered"
    assert _ask(address, _stranger(tmp_path)) == b"", "a client with a certificate of another authority was answered"
    assert b"200" not in _ask(address, None), "plain HTTP was answered"


def _pair(secret: dict[str, str], folder: Path) -> Path:
    import base64

    pair = folder / "own.pem"
    pair.write_bytes(base64.b64decode(secret["tls.key"]) + base64.b64decode(secret["tls.crt"]))
    return pair


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
        except urllib.error.URLError as error:
            return [f"Prometheus: {error}"]

    wait_for(lambda: not empty(), 60, "data in every panel", every=2.0, seen=empty)
