"""Mutual TLS between sidecars and with the operator: one CA and one key pair a job, in a mounted Secret."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

_FILES = ("ca.crt", "tls.crt", "tls.key")
_LOOK = 5.0  # seconds
_log = logging.getLogger(__name__)


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


async def follow(folder: Path, *contexts: ssl.SSLContext) -> None:
    """Let new connections use new files. Never ends.

    If the Secret is deleted, the operator makes another one, and the kubelet brings it here in time. The old CA stays trusted
    by this process: its key was thrown away when it had signed.
    """
    known = _content(folder)
    while True:
        await asyncio.sleep(_LOOK)
        fresh = _content(folder)
        if fresh != known and _reload(folder, contexts):
            known = fresh


def _content(folder: Path) -> tuple[bytes, ...]:
    """What the files hold; empty while they are being replaced."""
    try:
        return tuple((folder / name).read_bytes() for name in _FILES)
    except OSError:
        return ()


def _reload(folder: Path, contexts: tuple[ssl.SSLContext, ...]) -> bool:
    ca, certificate, key = (folder / name for name in _FILES)
    try:
        for context in contexts:
            context.load_verify_locations(str(ca))
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        _log.warning("new certificates in %s are not whole yet: %s", folder, error)
        return False
    _log.info("new certificates are in use")
    return True
