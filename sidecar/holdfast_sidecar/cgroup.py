"""How much more memory this container may take before the kernel kills something in it. Knows cgroup v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60  # v1 says "no limit" with a huge number


@dataclass(frozen=True)
class _Files:
    controller: str
    limit: str
    usage: str
    reclaimable: tuple[str, ...]


_V1 = _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = _Files("", "memory.max", "memory.current", ("inactive_file", "active_file"))


def available(root: Path = Path("/sys/fs/cgroup"), table: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that are left under the tightest limit, page cache counted as free; None without a limit."""
    left = [room for files, folder in _levels(root, table) if (room := _room(files, folder)) is not None]
    return min(left, default=None)


def _levels(root: Path, table: Path) -> list[tuple[_Files, Path]]:
    """The group's folder and all above it. In a container the group's own folder is usually the mount's root."""
    found = []
    for files, base, path in _groups(root, table):
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            found.append((files, folder))
            if folder == base:
                break
            folder = folder.parent
    return found


def _groups(root: Path, table: Path) -> list[tuple[_Files, Path, str]]:
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if ".." in path.split("/"):
            path = "/"  # a group outside of our cgroup namespace
        if not controllers:
            groups.append((_V2, root, path))
        elif "memory" in controllers.split(","):
            groups.append((_V1, root / _V1.controller, path))
    return groups


def _room(files: _Files, folder: Path) -> int | None:
    limit, usage = _number(folder / files.limit), _number(folder / files.usage)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return None
    return max(0, limit - usage + _reclaimable(files, folder))


def _reclaimable(files: _Files, folder: Path) -> int:
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(p[1]) for p in pairs if len(p) == 2 and p[0] in files.reclaimable)
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
