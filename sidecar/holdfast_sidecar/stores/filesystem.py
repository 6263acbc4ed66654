"""A store in a folder: a mounted claim (PVC), or any local directory.

Plain system calls instead of fsspec's local file system, because that one never syncs: a checkpoint is durable only when
the file *and* the folder that names it are. Counterpart: `objects`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from holdfast_core.config import STORES_DIR

from .base import TEMPORARY, Chunk, NotFound, Reader, StoreError

_SYNC_EVERY = 64 << 20  # bytes; bounds how long one sync can take, so that a hang can be told from slowness
_MIB = 1 << 20

_ADVICE = {
    errno.ENOSPC: "no space left: enlarge the volume, delete files, or lower `keep`",
    errno.EDQUOT: "disk quota exceeded: raise the quota, delete files, or lower `keep`",
    errno.EACCES: "permission denied: let the sidecar's user or fsGroup write there",
    errno.EPERM: "operation not permitted: let the sidecar's user or fsGroup write there",
    errno.EROFS: "read-only: mount the volume for writing (is the claim mounted?)",
    errno.EIO: "input/output error: check the volume and its server",
    errno.ESTALE: "stale file handle: check the file server, or remount the volume",
}


class FileStore:
    """`root` is created; what it is to be created in must be there."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    def probe(self, need: int) -> None:
        """Write and sync a small file, and compare the free space with `need`."""
        with self._explained("write to"):
            self._require_mount()
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}{TEMPORARY}"
            try:
                _write_synced(probe, [bytes(4096)])
            finally:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)
            info = os.statvfs(self.root)
        free = info.f_bavail * info.f_frsize
        if free < need:
            raise StoreError(
                f"{self.root}: no space left: {-(-need // _MIB)} MiB needed, {free // _MIB} MiB free: "
                "enlarge the volume, delete files, or lower `keep`"
            )

    def listing(self, folder: str) -> dict[str, int]:
        """See `Store`."""
        with self._explained("list"):
            self._require_mount()
            try:
                entries = list(os.scandir(self.root / folder))
            except FileNotFoundError:
                return {}
            found = (_entry(e) for e in entries)
            return {name: size for name, size in found if size is not None}

    def read(self, path: str, limit: int) -> bytes:
        """See `Store`."""
        with self._explained("read"), (self.root / path).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise StoreError(f"{path} is larger than {limit} bytes: not one of ours")
        return data

    def open(self, path: str) -> AbstractContextManager[Reader]:
        """See `Store`."""
        return self._open(path)

    @contextmanager
    def _open(self, path: str) -> Iterator[Reader]:
        with self._explained("read"), (self.root / path).open("rb", buffering=0) as file:
            yield _FileReader(file, self)

    def write(self, path: str, chunks: Iterable[Chunk]) -> None:
        """Temporary name, sync the file, rename, sync the folders."""
        target = self.root / path
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY}")
        with self._explained("write to"):
            self._require_mount()
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(temporary, chunks)
                os.rename(temporary, target)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)
            _sync_folder(target.parent.parent)

    def delete(self, path: str) -> None:
        """See `Store`."""
        target = self.root / path
        with self._explained("delete from"), suppress(FileNotFoundError):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()

    def _require_mount(self) -> None:
        """A claim's folder that is no mount point is the container's own disk: bytes there would be lost with the pod."""
        claim = Path(STORES_DIR) / self.name
        if self.root.is_relative_to(claim) and not os.path.ismount(claim):
            raise StoreError(f"no volume is mounted at {claim}: check the claim of store {self.name!r}")

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename} does not exist") from error
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
            raise StoreError(f"cannot {doing} {self.root}: {advice}") from error


class _FileReader:
    def __init__(self, file: BinaryIO, store: FileStore) -> None:
        self._file, self._store = file, store

    def read(self, size: int) -> bytes:
        with self._store._explained("read"):
            return self._file.read(size)


def _entry(entry: os.DirEntry[str]) -> tuple[str, int | None]:
    if entry.is_dir(follow_symlinks=False):
        return entry.name, -1
    try:
        return entry.name, entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # deleted meanwhile
        return entry.name, None


def _write_synced(path: Path, chunks: Iterable[Chunk]) -> None:
    with path.open("wb", buffering=0) as file:
        unsynced = 0
        for chunk in chunks:
            view = memoryview(chunk)
            while view.nbytes:
                view = view[file.write(view) :]
            unsynced += len(chunk)
            if unsynced >= _SYNC_EVERY:
                os.fdatasync(file.fileno())
                unsynced = 0
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems can't, and sync names at once
            raise
    finally:
        os.close(descriptor)
