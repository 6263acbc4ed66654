"""The durable levels as they lie on this machine's disks, read without any of the code that wrote them but the names."""

from __future__ import annotations

from pathlib import Path

from holdfast_core.durable import ATTEMPTS, MANIFEST, parse_attempt_file, parse_step_dir, shard_file, step_dir
from holdfast_core.timeline import Copy


def committed(folder: Path) -> list[Copy]:
    """Copies with a manifest, oldest first."""
    return sorted(c for c, _ in _manifests(folder))


def newest(folder: Path) -> Copy:
    """The newest of them; step -1 if there is none."""
    return max(committed(folder), default=Copy(-1, 0))


def written_since(folder: Path, since: float) -> list[Copy]:
    """Copies whose manifest was written after a time."""
    return [copy for copy, path in _manifests(folder) if _time(path) > since]


def recorded(folder: Path) -> list[int]:
    """The attempts that have committed something here: from then on, older ones may not."""
    found = (parse_attempt_file(entry.name) for entry in folder.glob(f"{ATTEMPTS}/*"))
    return [number for number in found if number is not None]


def shard(folder: Path, copy: Copy, rank: int) -> Path:
    """A rank's file of a copy."""
    return folder / step_dir(copy) / shard_file(rank)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, and nothing else about it."""
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 0x10]))


def truncate(path: Path) -> None:
    """Cut a file in half."""
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def _manifests(folder: Path) -> list[tuple[Copy, Path]]:
    found = []
    for entry in folder.glob("step-*"):
        copy = parse_step_dir(entry.name)
        if copy is not None and (entry / MANIFEST).is_file():
            found.append((copy, entry / MANIFEST))
    return found


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # retention took it a moment ago
