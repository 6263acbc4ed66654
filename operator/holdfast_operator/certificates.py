"""The certificate of a job: one authority, thrown away after it signed one key pair that all of the job's pods share.

Whoever holds the pair is a member of the job: its sidecars, and the operator as their client. Nobody else can be, because
nobody can sign a second one.
"""

from __future__ import annotations

import base64
import datetime
import os
import ssl
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from holdfast_core import config

FILES = ("ca.crt", "tls.crt", "tls.key")
_VALID = datetime.timedelta(days=3650)
_BACKDATED = datetime.timedelta(hours=1)  # nodes' clocks differ


def issue(job_uid: str, now: datetime.datetime) -> dict[str, str]:
    """A fresh authority's certificate, and the one key pair it signed; PEM by file name."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _authority(job_uid, authority_key, now)
    certificate = _member(job_uid, authority, authority_key, key, now)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"ca.crt": _pem(authority), "tls.crt": _pem(certificate), "tls.key": private.decode()}


def _authority(job_uid: str, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = _name(f"{job_uid} authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        _builder(name, name, key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _member(
    job_uid: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(job_uid), authority.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(both, critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(config.TLS_NAME)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def from_secret(data: Mapping[str, str]) -> dict[str, str]:
    """PEM by file name of a Secret's `data`; raises ValueError if a file is missing or garbage."""
    missing = [name for name in FILES if name not in data]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return {name: base64.b64decode(data[name]).decode() for name in FILES}


def to_secret(files: Mapping[str, str]) -> dict[str, str]:
    """`data` of a Secret."""
    return {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}


def client_context(files: Mapping[str, str]) -> ssl.SSLContext:
    """TLS of the operator as a client of the job's sidecars. The key touches no disk."""
    context = ssl.create_default_context(cadata=files["ca.crt"])
    pair = os.memfd_create("holdfast-tls")
    try:
        os.write(pair, (files["tls.key"] + files["tls.crt"]).encode())
        context.load_cert_chain(f"/proc/self/fd/{pair}")
    finally:
        os.close(pair)
    return context
