"""The Debian packages that the cluster is made of, installed without starting their services."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from holdfast_cluster.config import ClusterError, Paths
from holdfast_cluster.shell import run

# Package -> a program that shows it is there (so that machines which got it another way are left alone).
PACKAGES = {
    "etcd-server": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "nftables": "nft",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "prometheus": "prometheus",
    "iproute2": "ip",
    "e2fsprogs": "mkfs.ext4",
    "openssl": "openssl",
    "util-linux": "unshare",
    "ca-certificates": "update-ca-certificates",
}
_SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POLICY = Path("/usr/sbin/policy-rc.d")
_REFUSE = "#!/bin/sh\n# Made by holdfast's cluster while it installs packages.\nexit 101\n"


def extend_path() -> None:
    """Adds the system folders to PATH: a user's shell often lacks /usr/sbin."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":" + _SBIN


def missing() -> list[str]:
    """Packages whose program is not installed, and python3-venv where Python lacks what it brings."""
    names = [package for package, program in PACKAGES.items() if shutil.which(program) is None]
    return names if importlib.util.find_spec("ensurepip") else [*names, "python3-venv"]


def install(paths: Paths) -> str:
    """Installs what is missing with apt; raises ClusterError where there is no apt."""
    wanted = missing()
    if not wanted:
        return "all there"
    if shutil.which("apt-get") is None:
        raise ClusterError(f"not a Debian machine: install the programs of {', '.join(wanted)} by hand")
    log = paths.cache / "logs" / "apt.log"
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-y", "-q"]
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        # An earlier installation may have been interrupted half way.
        run(["dpkg", "--configure", "-a"], timeout=600, log=log, env=env)
        run([*apt, "update"], timeout=600, log=log, env=env)
        run([*apt, "install", "--no-install-recommends", *wanted], timeout=1200, log=log, env=env)
    still = missing()
    if still:
        raise ClusterError(f"apt installed {', '.join(still)} without the expected program; see {log}")
    return f"installed {len(wanted)} packages"


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keeps the packages' services (etcd, containerd, prometheus) from being started: they would hold ports."""
    if _POLICY.exists() and _POLICY.read_text(encoding="utf-8") != _REFUSE:
        yield
        return
    _POLICY.write_text(_REFUSE, encoding="utf-8")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
