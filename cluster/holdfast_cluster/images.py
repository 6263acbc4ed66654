"""Images without a registry: a Debian base, the pause image, builds with buildah, and loading into every node.

An image is a docker-archive tar in the cache. What a node has loaded already (same name, same content) is skipped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from holdfast_cluster.build import binary, content_key
from holdfast_cluster.config import BASE_IMAGE, DEBIAN, PAUSE_IMAGE, ClusterError, Paths
from holdfast_cluster.shell import run

_INCLUDE = "python3.11,python3.11-venv,python3-pip,ca-certificates"
_TIDY = """
rm -rf {root}/var/lib/apt/lists/* {root}/var/cache/apt/*.bin {root}/var/cache/apt/archives/*.deb
rm -rf {root}/usr/share/doc {root}/usr/share/man {root}/usr/share/locale
rm -f {root}/usr/lib/python3.11/EXTERNALLY-MANAGED {root}/var/log/*.log
ln -sf python3.11 {root}/usr/bin/python3
ln -sf python3.11 {root}/usr/bin/python
ln -sf pip3 {root}/usr/bin/pip
find {root}/usr/lib/python3 {root}/usr/lib/python3.11 -name __pycache__ -prune -exec rm -rf {{}} +
"""


def rootfs(paths: Paths) -> Path:
    """The root file system's tar, there only until the base image is made of it."""
    key = content_key([], DEBIAN, _INCLUDE, _TIDY)
    return paths.cache / "images" / f"rootfs-{key}.tar"


def base_archive(paths: Paths) -> Path:
    """The base image as a docker-archive."""
    return rootfs(paths).with_name(rootfs(paths).name.replace("rootfs", "base"))


def make_rootfs(paths: Paths) -> str:
    """Debian with Python, laid out so that what builds on `python:3.11-slim-bookworm` builds on it too."""
    target = rootfs(paths)
    if target.exists() or base_archive(paths).exists():
        return "cached"
    target.parent.mkdir(parents=True, exist_ok=True)
    log = paths.cache / "logs" / "debootstrap.log"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".rootfs-") as work:
        root = Path(work) / "root"
        argv: list[str | Path] = ["debootstrap", "--variant=minbase", f"--include={_INCLUDE}", DEBIAN, root, *_mirror()]
        # An own mount namespace: debootstrap's mounts of /proc and /sys go with it, even when it is killed.
        run(["unshare", "--mount", "--propagation", "slave", *argv], timeout=1800, log=log)
        run(["sh", "-ec", _TIDY.format(root=root)], timeout=120, log=log)
        part = Path(work) / "rootfs.tar"
        run(["tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "-cf", part, "."], timeout=300, log=log)
        part.replace(target)
    return "built"


def _mirror() -> list[str]:
    """The Debian mirror that apt is set up for; nothing (debootstrap's own default) where there is none."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return []
    return first_mirror(_apt_sources()) if "\nID=debian" in "\n" + release else []


def _apt_sources() -> str:
    folder = Path("/etc/apt/sources.list.d")
    files = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.sources")), *sorted(folder.glob("*.list"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())


def first_mirror(sources: str) -> list[str]:
    """The first address in apt's sources (one-line or deb822 style) that ends in /debian, as a list of 0 or 1."""
    for line in sources.splitlines():
        words = line.strip().split()
        if words and words[0] in {"deb", "URIs:"}:
            for word in words[1:]:
                if word.rstrip("/").endswith("/debian"):
                    return [word]
    return []


def make_base(paths: Paths) -> str:
    """Wraps the root file system as an image, and imports it for buildah to build upon."""
    archive = base_archive(paths)
    if not archive.exists():
        config = {"Cmd": ["python3"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
        write_archive(archive, rootfs(paths), BASE_IMAGE, config)
        rootfs(paths).unlink()
        _buildah(paths, "pull", f"docker-archive:{archive}", timeout=300)
        return "built"
    if BASE_IMAGE not in _buildah(paths, "images", "--format", "{{.Name}}:{{.Tag}}"):
        _buildah(paths, "pull", f"docker-archive:{archive}", timeout=300)
    return "cached"


def pause_archive(paths: Paths) -> Path:
    """The image that holds a pod's namespaces, made from the static pause program."""
    program = binary(paths, "pause")
    archive = program.with_name("pause-image.tar")
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=archive.parent) as work:
            layer = Path(work) / "layer.tar"
            with tarfile.open(layer, "w") as tar:
                info = tarfile.TarInfo("pause")
                info.mode, info.size = 0o755, program.stat().st_size
                with program.open("rb") as stream:
                    tar.addfile(info, stream)
            write_archive(archive, layer, PAUSE_IMAGE, {"Entrypoint": ["/pause"], "User": "65535:65535"})
    return archive


def write_archive(target: Path, layer: Path, name: str, config: Mapping[str, object]) -> None:
    """Writes a one-layer docker-archive: the layer's tar, its config, and the manifest that names both."""
    with layer.open("rb") as stream:
        layer_digest = hashlib.file_digest(stream, "sha256").hexdigest()
    image = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "holdfast cluster"}],
    }
    body = json.dumps(image).encode()
    config_name = hashlib.sha256(body).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{layer_digest}.tar"]}]
    part = target.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        tar.add(layer, f"{layer_digest}.tar")
        for entry, data in ((config_name, body), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    part.replace(target)


@dataclass(frozen=True)
class BuildRequest:
    """What `build-image` is asked for."""

    tag: str
    context: Path
    dockerfile: Path
    target: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)


def image_archive(paths: Paths, tag: str) -> Path:
    """Where the newest build of a tag lies (a link to the content-addressed archive)."""
    return paths.cache / "images" / "by-name" / (tag.replace("/", "_").replace(":", "_") + ".tar")


def normalise(tag: str) -> str:
    """A full image name: `operator` becomes `localhost/operator:latest`, as buildah names it."""
    name, _, digest = tag.partition("@")
    if "/" not in name or not ({".", ":"} & set(name.split("/")[0]) or name.startswith("localhost/")):
        name = f"localhost/{name}"
    if ":" not in name.rsplit("/", 1)[-1] and not digest:
        name += ":latest"
    return f"{name}@{digest}" if digest else name


def build_image(paths: Paths, request: BuildRequest) -> str:
    """Builds one image from a Dockerfile on the local base; the same inputs again cost only their hash."""
    tag = normalise(request.tag)
    if not request.dockerfile.exists():
        raise ClusterError(f"no Dockerfile at {request.dockerfile}: give one with --file")
    if not base_archive(paths).exists():
        raise ClusterError("there is no base image yet: run `cluster prepare` first")
    archive = paths.cache / "images" / f"image-{_request_key(paths, request, tag)}.tar"
    did = "cached"
    if not archive.exists():
        make_base(paths)
        _build(paths, request, tag)
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        _buildah(paths, "push", "--disable-compression", tag, f"docker-archive:{part}:{tag}", timeout=600)
        part.replace(archive)
        did = "built"
    _point(image_archive(paths, tag), archive)
    return did


def _point(link: Path, archive: Path) -> None:
    """Makes a tag's link name its newest archive, and drops archives that no tag names any more."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(archive)
    used = {entry.resolve() for entry in link.parent.iterdir()}
    for old in archive.parent.glob("image-*.tar"):
        if old.resolve() not in used:
            old.unlink()


def _build(paths: Paths, request: BuildRequest, tag: str) -> None:
    arguments = {"BASE": BASE_IMAGE, **request.arguments}
    argv = ["bud", "--layers", "--isolation", "chroot", "--network", "host", "--format", "docker"]
    argv += ["--pull=never", "-t", tag, "-f", str(request.dockerfile)]
    argv += [word for name, value in sorted(arguments.items()) for word in ("--build-arg", f"{name}={value}")]
    argv += ["--target", request.target] if request.target else []
    for place in ("/etc/ssl/certs", "/usr/share/ca-certificates", "/etc/pip.conf"):
        argv += ["-v", f"{place}:{place}:ro"] if Path(place).exists() else []
    log = paths.cache / "logs" / "build-image.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _buildah(paths, *argv, str(request.context), timeout=1800, log=log)


def _request_key(paths: Paths, request: BuildRequest, tag: str) -> str:
    digest = hashlib.sha256()
    inputs = [base_archive(paths).name, tag, request.target or "", *map(str, sorted(request.arguments.items()))]
    for part in inputs:
        digest.update(part.encode() + b"\0")
    digest.update(request.dockerfile.read_bytes())
    for file in context_files(request.context):
        digest.update(f"{file.relative_to(request.context)}\0{file.lstat().st_mode}\0".encode())
        digest.update(os.readlink(file).encode() if file.is_symlink() else file.read_bytes())
    return digest.hexdigest()[:16]


def context_files(context: Path) -> list[Path]:
    """Files that a build's result may depend on: what git would carry, or everything outside a git checkout.

    A Dockerfile must not copy what git ignores: a change there would go unnoticed.
    """
    listing = subprocess.run(
        ["git", "-C", str(context), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [context / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    else:
        files = list(context.rglob("*"))
    return sorted({file for file in files if file.is_symlink() or file.is_file()})


def _buildah(paths: Paths, *words: str, timeout: float = 120.0, log: Path | None = None) -> str:
    store = paths.cache / "buildah"
    # buildah mounts its own store; in a mount namespace of its own nothing of that stays on the machine.
    argv: list[str | Path] = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "buildah",
        "--root",
        store / "root",
        "--runroot",
        store / "run",
        *words,
    ]
    return run(argv, timeout=timeout, log=log, env={"BUILDAH_ISOLATION": "chroot"})


def load_archive(paths: Paths, archive: Path, node_pids: Mapping[str, int]) -> dict[str, str]:
    """Imports an archive into each node's containerd; {node: "loaded" or "already there"}."""
    tags, config = archive_identity(archive)
    images = dict.fromkeys(tags, config)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        work = {name: pool.submit(_load_into, paths, name, pid, archive, images) for name, pid in node_pids.items()}
    return {name: future.result() for name, future in work.items()}


def archive_identity(archive: Path) -> tuple[list[str], str]:
    """(image names, config digest) of a docker-archive."""
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile("manifest.json")
            assert stream is not None
            manifest = json.load(stream)[0]
            config = tar.extractfile(manifest["Config"])
            assert config is not None
            return [str(tag) for tag in manifest["RepoTags"]], hashlib.sha256(config.read()).hexdigest()
    except (OSError, KeyError, IndexError, ValueError, tarfile.TarError) as error:
        raise ClusterError(f"{archive} is not a docker-archive image tar ({error})") from None


def _load_into(paths: Paths, node: str, pid: int, archive: Path, images: Mapping[str, str]) -> str:
    """`images` maps each name in the archive to its config digest; the node's record says what it has."""
    record = paths.node(node) / "images.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if known.items() >= images.items():
        return "already there"
    run([*in_node(pid, "ctr", "-n", "k8s.io", "images", "import"), archive], timeout=600)
    record.write_text(json.dumps({**known, **images}), encoding="utf-8")
    return "loaded"


def in_node(pid: int, *words: str | Path) -> list[str]:
    """The command line that runs `words` inside all namespaces of the node whose init is `pid`."""
    nsenter = shutil.which("nsenter") or "nsenter"
    return [nsenter, "-t", str(pid), "-m", "-n", "-p", "-u", "-i", "--", *map(str, words)]
