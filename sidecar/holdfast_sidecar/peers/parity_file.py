"""One parity buffer: a file beside the arenas that describes itself, as they do. Used by `parity`.

    page 0      what it is, and a word that says whether it is whole: stored last, as one aligned 8-byte write
    page 1..    the record: of what it is the parity (JSON, `wire.Code`), then the CRC-32s of each row's PIECEs
    then        `parity` rows of a block each
All numbers are little-endian.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from array import array
from pathlib import Path

from holdfast_core import arena
from holdfast_core import wire as documents
from holdfast_core.arena import PAGE, ArenaError
from holdfast_core.timeline import Copy

from .wire import Code, pieces

_MAGIC = b"HFPARITY"
_VERSION = 1
_HEAD = struct.Struct("<8sIIQQ64sII")  # magic, version, rank, start of rows, bytes of the record, job UID, its CRC, head's CRC
_WHOLE = 512


class ParityFile:
    """A mapped buffer. `code` is None while it holds nothing; `serial` changes whenever its content does."""

    def __init__(self, path: Path, descriptor: int, rank: int) -> None:
        self.path, self.rank, self._descriptor = path, rank, descriptor
        self.nbytes = os.fstat(descriptor).st_size
        self.buf = memoryview(mmap.mmap(descriptor, self.nbytes))
        self.code: Code | None = None
        self.sums = array("I")
        self.start = self.serial = 0

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """Of the open file."""
        return self._descriptor

    @classmethod
    def create(cls, path: Path, rank: int, nbytes: int) -> ParityFile:
        """A buffer of so many bytes, all of them faulted in; raises OSError."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return cls(path, descriptor, rank)

    @classmethod
    def open(cls, path: Path, job_uid: str, rank: int) -> ParityFile:
        """One that an earlier sidecar left; raises ArenaError unless it is whole and this rank's."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        if os.fstat(descriptor).st_size < _WHOLE + 8:
            os.close(descriptor)
            raise ArenaError("too short")
        file = cls(path, descriptor, rank)
        file._read(job_uid)
        return file

    def _read(self, job_uid: str) -> None:
        raw = bytes(self.buf[: _HEAD.size])
        magic, version, rank, start, nbytes, uid, crc, head_crc = _HEAD.unpack(raw)
        if magic != _MAGIC or version != _VERSION or zlib.crc32(raw[:-4]) != head_crc:
            raise ArenaError("not a parity buffer of this version")
        if uid.rstrip(b"\0").decode(errors="replace") != job_uid or rank != self.rank:
            raise ArenaError(f"belongs to rank {rank} of job {uid.rstrip(bytes(1)).decode(errors='replace')}")
        if not self._flag[0]:
            raise ArenaError("was never whole")
        record = bytes(self.buf[PAGE : PAGE + nbytes])
        if zlib.crc32(record) != crc:
            raise ArenaError("record checksum mismatch")
        length = int.from_bytes(record[:4], "little")
        code = documents.loads(Code, record[4 : 4 + length])
        sums = array("I", record[4 + length :])
        if len(sums) != _sums(code) or start + code.parity * code.block > self.nbytes:
            raise ArenaError("cut short")
        self.code, self.sums, self.start = code, sums, start

    @property
    def _flag(self) -> memoryview:
        return self.buf[_WHOLE : _WHOLE + 8].cast("q")

    def is_intact(self) -> bool:
        """Whether every page of the mapping is backed by the file: else a look at it would be SIGBUS."""
        return os.fstat(self._descriptor).st_size >= self.nbytes

    @property
    def whole(self) -> bool:
        """Whether it holds parity that may be used."""
        return self.code is not None and self.is_intact() and bool(self._flag[0])

    @property
    def copy(self) -> Copy | None:
        """Of what copy the whole parity is."""
        code = self.code  # once: another thread may clear it
        return code.copy if code is not None and self.whole else None

    @property
    def _known(self) -> Code:
        if self.code is None:
            raise ArenaError(f"{self.path.name} holds nothing")
        return self.code

    def row(self, number: int) -> memoryview:
        """A row's bytes; this and what follows raises ArenaError if it holds nothing."""
        start = self.row_offset(number)
        return self.buf[start : start + self._known.block]

    def row_offset(self, number: int) -> int:
        """Where a row begins in the file."""
        return self.start + number * self._known.block

    def row_sums(self, number: int) -> array[int]:
        """The CRC-32s of a row's pieces."""
        count = pieces(self._known.block)
        return self.sums[number * count : (number + 1) * count]

    def set_sum(self, row: int, piece: int, value: int) -> None:
        """One of them."""
        self.sums[row * pieces(self._known.block) + piece] = value

    def clear(self) -> None:
        """It holds nothing from here on."""
        self.serial += 1
        if self.is_intact():
            self._flag[0] = 0
        self.code = None

    def begin(self, code: Code) -> None:
        """Make it ready for the rows of another copy."""
        self.clear()
        self.start, self.code = _start(code), code
        self.sums = array("I", bytes(4 * _sums(code)))

    def finish(self, job_uid: str) -> None:
        """The rows and `sums` are complete: say so. Raises ArenaError if the file was cut short meanwhile."""
        if not self.is_intact():
            raise ArenaError(f"{self.path.name} was cut short")
        text = documents.dumps(self._known)
        record = len(text).to_bytes(4, "little") + text + self.sums.tobytes()
        self.buf[PAGE : PAGE + len(record)] = record
        head = _HEAD.pack(
            _MAGIC, _VERSION, self.rank, self.start, len(record), job_uid.encode(), zlib.crc32(record), 0
        )  # fmt: skip
        self.buf[: _HEAD.size] = head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))
        self._flag[0] = 1


def size_for(code: Code) -> int:
    """Bytes of a buffer for such parity."""
    return arena.align(_start(code) + code.parity * code.block, PAGE)


def _sums(code: Code) -> int:
    return code.parity * pieces(code.block)


def _start(code: Code) -> int:
    return PAGE + arena.align(4 + len(documents.dumps(code)) + 4 * _sums(code), PAGE)
