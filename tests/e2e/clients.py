"""Clients of the sidecars' ports: with the job's certificate, without any, and with one that nobody the job knows issued."""

from __future__ import annotations

import base64
import select
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from holdfast_core.config import PEER_PORT, TLS_NAME
from holdfast_core.timeline import Copy
from holdfast_demo.faults import Scene
from holdfast_sidecar.peers import wire
from holdfast_sidecar.peers.channel import Channel
from holdfast_sidecar.peers.wire import Answer, Request


def anybody() -> ssl.SSLContext:
    """A client without a certificate. None of these asks for the server's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def stranger(folder: Path) -> ssl.SSLContext:
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
    return _with(folder / "stranger.pem", private + certificate.public_bytes(serialization.Encoding.PEM))


def member(scene: Scene, folder: Path) -> ssl.SSLContext:
    """A client with the job's own certificate."""
    secret = scene.cluster.kube.get("Secret", scene.job.namespace, f"{scene.job.name}-holdfast-tls")["data"]
    return _with(folder / "member.pem", base64.b64decode(secret["tls.key"]) + base64.b64decode(secret["tls.crt"]))


def _with(pair: Path, text: bytes) -> ssl.SSLContext:
    pair.write_bytes(text)
    context = anybody()
    context.load_cert_chain(pair)
    return context


def question(scene: Scene, attempt: int) -> Request:
    """What a pod of the job, in this attempt, would ask another about the protected step."""
    resource = scene.job.resource
    assert resource is not None
    return Request(wire.INFO, resource["metadata"]["uid"], attempt, Copy(scene.job.checkpoint("peers"), attempt))


def ask_peer(address: str, context: ssl.SSLContext | None, request: Request) -> Answer:
    """A peer's answer. Raises SSLError with the alert by which it refuses the client, Closed or Refused for what is no TLS."""
    with socket.create_connection((address, PEER_PORT), timeout=10) as plain:
        if context is None:
            return _exchange(plain, request)
        with context.wrap_socket(plain, server_hostname=TLS_NAME) as stream:
            # Unasked, tickets come for a member and an alert for all others: who writes first may never get to read it.
            select.select([stream], [], [], 5)
            stream.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                stream.recv(1)
            return _exchange(stream, request)


def _exchange(stream: socket.socket, request: Request) -> Answer:
    channel = Channel(stream, 10)
    channel.send(request)
    return channel.receive(Answer, wire.ANSWER_LIMIT)
