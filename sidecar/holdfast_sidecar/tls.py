"""Mutual TLS between sidecars and with the operator: one CA and one key pair a job, in a mounted Secret."""

from __future__ import annotations

import ssl
from pathlib import Path

_FILES = ("ca.crt", "tls.crt", "tls.key")


class TlsError(Exception):
    """The certificate files can't be used."""


def server_context(folder: Path) -> ssl.SSLContext:
    """For the API: a client without a certificate of the job's CA is turned away. Raises TlsError."""
    return _context(folder, ssl.Purpose.CLIENT_AUTH)


def client_context(folder: Path) -> ssl.SSLContext:
    """For the group: only a server with the job's certificate is trusted. Raises TlsError."""
    return _context(folder, ssl.Purpose.SERVER_AUTH)


def _context(folder: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    ca, certificate, key = (folder / name for name in _FILES)
    try:
        context = ssl.create_default_context(purpose, cafile=str(ca))
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        missing = [str(p) for p in (ca, certificate, key) if not p.exists()]
        what = f"{', '.join(missing)} missing" if missing else str(error)
        raise TlsError(f"cannot use the certificates in {folder}: {what}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    return context
