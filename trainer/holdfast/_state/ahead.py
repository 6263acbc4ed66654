"""A rank's arena, mapped and faulted in by a thread while the script still imports and builds its model.

A new process that reads a slot meets a page fault for each part of it: about 58 ms a GiB were seen, as long as copy and
checksum together. Here the faults are taken before anybody waits for them, in the time that the script needs anyway. It is a
hint and nothing more: whoever opens an arena (`mapping`) takes what is here if it is the same file, and maps it himself if not.
Torch is not imported here: this starts before it is there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from holdfast_core import arena
from holdfast_core.arena import ArenaError, SlotState

ENV = "HOLDFAST_AHEAD"  # PATH of the arena that will be asked for; "off": nothing is mapped ahead
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; not in every Python's mmap. Of a shared mapping it allows writes too
_PIECE = 32 << 20  # bytes; the lock of the address space is let go in between

_FileId = tuple[int, int]
_mapped: dict[_FileId, mmap.mmap] = {}
_over = threading.Event()


def begin(environ: Mapping[str, str] = os.environ) -> threading.Thread | None:
    """Start to map what this process will restore from, if the environment tells; the thread ends by itself."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return None  # a worker of a data loader
    thread = threading.Thread(target=_work, args=(dict(environ), sys.argv[:1]), name="holdfast-ahead", daemon=True)
    thread.start()
    return thread


def wanted(environ: Mapping[str, str], script: str) -> Path | None:
    """The arena file, or None if there is nothing to restore from, or nobody knows."""
    hint = environ.get(ENV, "")
    if hint or environ.get("HOLDFAST_SOCKET"):
        return Path(hint) if hint.startswith("/") else None
    rank = environ.get("RANK", "0")
    found = sorted(folder(environ, script).glob(f"rank-{rank.zfill(5)}.g*.arena"), key=_generation)
    return found[-1] if found else None


def folder(environ: Mapping[str, str], script: str) -> Path:
    """Where a script without a sidecar keeps its snapshots."""
    name = Path(script).stem if script not in ("", "-", "-c", "-m") else "interactive"
    return Path(environ.get("HOLDFAST_DIR") or Path(".holdfast") / name)


def _generation(path: Path) -> int:
    number = path.suffixes[0][2:]
    return int(number) if number.isdigit() else -1


def take(fd: int) -> mmap.mmap | None:
    """The mapping of this very file, if it was made ahead."""
    status = os.fstat(fd)
    found = _mapped.pop((status.st_dev, status.st_ino), None)
    return found if found is not None and len(found) == status.st_size else None


def drop() -> None:
    """Let go of what nobody took: it would keep a deleted arena's memory alive. Nothing is mapped ahead after this."""
    _over.set()
    _mapped.clear()


def _work(environ: Mapping[str, str], argv: list[str]) -> None:
    with suppress(ArenaError, OSError, ValueError):  # a hint: whoever needs the file will say what is wrong with it
        path = wanted(environ, argv[0] if argv else "")
        if path is not None:
            _map(path)


def _map(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_size < arena.PAGE:
            return
        mapping = mmap.mmap(fd, status.st_size)
    finally:
        os.close(fd)
    with memoryview(mapping) as buf:
        regions = list(_regions(buf))
    _mapped[status.st_dev, status.st_ino] = mapping
    if _over.is_set():
        _mapped.clear()
        return
    _fault_in(mapping, regions)


def _regions(buf: memoryview) -> Iterable[tuple[int, int]]:
    """Start and length of what is worth it: the newest sealed slot first, then the others, which are written to next."""
    header = arena.read_header(buf)
    slots = [arena.read_slot(buf, i) for i in range(header.slots)]
    for slot in sorted(slots, key=lambda s: (s.state is SlotState.SEALED, s.step), reverse=True):
        yield header.region(slot.index), header.slot_bytes


def _fault_in(mapping: mmap.mmap, regions: Iterable[tuple[int, int]]) -> None:
    """Without the GIL. An older kernel refuses (EINVAL), a file that was cut short as well (EFAULT, no SIGBUS)."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    for start, length in regions:
        for at in range(start, start + length, _PIECE):
            if madvise(base + at, min(_PIECE, start + length - at), _POPULATE_READ) != 0:
                return
