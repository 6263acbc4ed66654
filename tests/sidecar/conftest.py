"""Fixtures: short folders in memory, certificates, jobs of real sidecars, an S3 server."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from holdfast_core.config import TLS_NAME, SidecarConfig, StoreConfig

from .harness import UID, Sidecar, eventually, free_port
from .jobs import Job, Pod
from .peer_pods import PeerJob
from .zygote import Zygote


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory with a short name: socket paths are limited to 107 bytes."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hf-", dir=base) as path:
        yield Path(path)


def issue_certificates(folder: Path) -> None:
    """ca.crt, tls.crt and tls.key as the operator's Secret has them."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def build(name: str, issuer: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    ca = build("ca", "ca", ca_key.public_key()).add_extension(x509.BasicConstraints(True, 0), critical=True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
    leaf = build("job", "ca", key.public_key()).add_extension(usage, critical=False)
    leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
    # the identifiers tell two CAs of the same name apart, as when a Secret was made anew
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    pem = serialization.Encoding.PEM
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "tls.crt").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    raw = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(raw)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "tls"
    issue_certificates(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    yield
    Zygote.close_shared()


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(folder: Path, certificates: Path) -> Iterator[MakeJob]:
    """`make_job(pods, processes, stores, ...)`: real sidecars on loopback with mTLS (or one without, `tls=False`)."""
    jobs: list[Job] = []

    def make(
        pods: int = 2,
        processes: int = 1,
        stores: tuple[StoreConfig, ...] = (),
        *,
        tls: bool = True,
        environment: dict[str, str] | None = None,
        **more: object,
    ) -> Job:
        sidecars = []
        for index in range(pods):
            config = SidecarConfig(
                UID, "gpt", "default", f"gpt-{index}", index, index * processes, processes, pods * processes,
                stores=stores, shared_dir=str(folder / f"p{index}"), tls_dir=str(certificates) if tls else "",
                api_port=free_port(), metrics_port=free_port(), peer_port=free_port(), **more,
            )  # fmt: skip
            sidecars.append(Sidecar(config, environment).start(healthy=False))
        jobs.append(Job([Pod(sidecar) for sidecar in sidecars]))
        for sidecar in sidecars:
            eventually(lambda s=sidecar: s.health()[0] == 200, 15, "healthy")
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


MakePods = Callable[..., PeerJob]


@pytest.fixture
def make_pods(folder: Path, certificates: Path) -> Iterator[MakePods]:
    """`make_pods(4, encrypted=False)`: pods with real arenas and peer servers, without the rest of a sidecar."""
    jobs: list[PeerJob] = []

    def make(pods: int, processes: int = 1, **more: object) -> PeerJob:
        shared = folder / f"j{len(jobs)}"
        shared.mkdir()
        jobs.append(PeerJob(shared, certificates, pods, processes, **more))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


# --- S3


def _versitygw() -> str | None:
    cache = Path(os.environ.get("HOLDFAST_CACHE", Path.home() / ".cache/holdfast"))
    built = [*cache.glob("cluster/go/s3-*/s3"), *cache.glob("versitygw"), *cache.glob("*/versitygw")]
    return shutil.which("versitygw") or next((str(p) for p in built if os.access(p, os.X_OK)), None)


class S3Server:
    """A real versitygw that can be stopped and started again."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self.port = free_port()
        self.root = folder / "buckets"
        (self.root / "holdfast").mkdir(parents=True)
        (folder / "iam").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.key, self.secret = "tester", "testersecret"

    def start(self) -> None:
        command = [self._binary, "--port", f"127.0.0.1:{self.port}", "--quiet", "posix", str(self.root)]
        keys = {"ROOT_ACCESS_KEY": self.key, "ROOT_SECRET_KEY": self.secret}
        with (self._folder / "s3.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=keys)
        eventually(lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() is None, 10, "S3 server")

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)

    def environment(self, prefix: str = "") -> dict[str, str]:
        values = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
        }
        return {prefix + name: value for name, value in values.items()}


@pytest.fixture
def s3_server(tmp_path: Path) -> Iterator[S3Server]:
    binary = _versitygw()
    if binary is None:
        pytest.skip("no versitygw in the cache or on PATH: `cluster/cluster prepare` builds it")
    server = S3Server(binary, tmp_path / "s3")
    server.start()
    yield server
    server.stop()
