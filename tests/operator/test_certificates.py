"""The job's certificate: real handshakes, and who is kept out."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from holdfast_core.config import TLS_NAME
from holdfast_operator import certificates

NOW = datetime.datetime.now(datetime.UTC)


def server_context(files: dict[str, str]) -> ssl.SSLContext:
    context = certificates.client_context(files)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=files["ca.crt"])
    del context
    return server


def handshake(client: ssl.SSLContext, server_files: dict[str, str], tmp_path: object) -> None:
    """A handshake through memory; raises ssl.SSLError if either side refuses."""
    import pathlib

    folder = pathlib.Path(str(tmp_path))
    (folder / "crt").write_text(server_files["tls.crt"])
    (folder / "key").write_text(server_files["tls.key"])
    context = server_context(server_files)
    context.load_cert_chain(folder / "crt", folder / "key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(down, up, server_hostname=TLS_NAME)
    other = context.wrap_bio(up, down, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (one, other):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            return
    raise AssertionError("no end")


def test_members_of_a_job_trust_each_other(tmp_path):
    files = certificates.issue("uid", NOW)
    handshake(certificates.client_context(files), files, tmp_path)


def test_another_jobs_pair_is_refused(tmp_path):
    mine, other = certificates.issue("uid", NOW), certificates.issue("uid", NOW)
    with pytest.raises(ssl.SSLError):
        handshake(certificates.client_context(other), mine, tmp_path)


def test_nobody_can_sign_a_second_pair_and_it_lasts():
    files = certificates.issue("uid", NOW)
    assert "PRIVATE KEY" not in files["ca.crt"] + files["tls.crt"]
    leaf = x509.load_pem_x509_certificate(files["tls.crt"].encode())
    assert leaf.subject.rfc4514_string() == "CN=uid"
    assert leaf.not_valid_before_utc <= NOW - datetime.timedelta(minutes=59)
    assert leaf.not_valid_after_utc >= NOW + datetime.timedelta(days=3649)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_secrets_there_and_back():
    files = certificates.issue("uid", NOW)
    assert certificates.from_secret(certificates.to_secret(files)) == files
    with pytest.raises(ValueError, match=r"tls\.key"):
        certificates.from_secret({k: v for k, v in certificates.to_secret(files).items() if k != "tls.key"})
