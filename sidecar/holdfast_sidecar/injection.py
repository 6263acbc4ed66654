"""Copies the packages that the trainer imports into the shared volume: the trainer's image needs nothing of ours.

A restarted sidecar finds them there and leaves them alone, because processes may be running from them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

PACKAGES = ("holdfast", "holdfast_core")
_STAMP = ".digest"


class InjectionError(Exception):
    """A package is not installed beside the sidecar."""


def inject(target: Path, packages: tuple[str, ...] = PACKAGES) -> None:
    """Copy what is not there yet, or differs. Raises InjectionError or OSError. Blocks."""
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o755)  # whatever our umask: the trainer may run as another user
    for package in packages:
        _copy(_find(package), target / package)


def _find(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InjectionError(f"package {package!r} is not installed beside the sidecar: the image is broken")
    return Path(next(iter(spec.submodule_search_locations)))


def _copy(source: Path, target: Path) -> None:
    digest = _digest(source)
    if _stamp(target) == digest:
        return
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    _make_readable(fresh)
    (fresh / _STAMP).write_text(digest)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(folder)}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def _stamp(folder: Path) -> str:
    try:
        return (folder / _STAMP).read_text()
    except OSError:
        return ""


def _make_readable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
