"""Who may talk to the API server: one CA, two certificates, and a token for each of the cluster's own users."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from holdfast_cluster.config import Paths, Plan
from holdfast_cluster.shell import run

_USERS = {
    "admin": ("holdfast-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "prometheus": ("holdfast-prometheus", ""),
}


def make(paths: Paths, plan: Plan, nodes: list[str]) -> None:
    """Writes the CA, certificates, tokens and kubeconfigs of a new cluster into the state folder."""
    paths.pki.mkdir(parents=True, exist_ok=True)
    paths.pki.chmod(0o700)
    _certificates(paths.pki, plan)
    users = dict(_USERS)
    users.update({node: (f"system:node:{node}", "system:nodes") for node in nodes})
    lines = []
    for name, (user, group) in users.items():
        token = secrets.token_hex(24)
        lines.append(f'{token},{user},{user},"{group}"')
        target = paths.kubeconfig if name == "admin" else paths.pki / f"{name}.kubeconfig"
        _write_secret(target, json.dumps(kubeconfig(plan.api_url, paths.pki / "ca.crt", token), indent=1))
    _write_secret(paths.pki / "tokens.csv", "\n".join(lines) + "\n")


def kubeconfig(url: str, ca: Path, token: str) -> dict[str, object]:
    """A kubeconfig with everything inside (JSON is YAML, so every client reads it)."""
    authority = base64.b64encode(ca.read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "holdfast", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "holdfast", "user": {"token": token}}],
        "contexts": [{"name": "holdfast", "context": {"cluster": "holdfast", "user": "holdfast"}}],
        "current-context": "holdfast",
    }


def _certificates(folder: Path, plan: Plan) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
    _openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=holdfast-cluster")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [plan.bridge_address, plan.api_service, "127.0.0.1"]
    alternatives = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
    _issue(folder, "apiserver", "/CN=kube-apiserver", f"subjectAltName={alternatives}")
    _issue(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth")
    _issue(folder, "etcd", "/CN=holdfast-etcd", "subjectAltName=IP:127.0.0.1")
    _openssl(folder, "genrsa", "-out", "service-account.key", "2048")
    _openssl(folder, "rsa", "-in", "service-account.key", "-pubout", "-out", "service-account.pub")


def _issue(folder: Path, name: str, subject: str, extension: str) -> None:
    """Makes a key and a certificate signed by the CA."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
    (folder / f"{name}.ext").write_text(extension + "\n", encoding="ascii")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "3650"]
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signing, "-extfile", f"{name}.ext", "-out", f"{name}.crt")


def _openssl(folder: Path, *words: str) -> None:
    run(["openssl", *words], cwd=folder)


def _write_secret(target: Path, text: str) -> None:
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    target.write_text(text, encoding="utf-8")
