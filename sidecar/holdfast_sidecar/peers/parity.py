"""The parity that this pod holds for others: two buffers a rank, the whole one and the one under construction.

The protected step's parity stays until the next one's is whole in the whole group: in between, both must exist. The buffers are
files beside the arenas, so that they outlive the sidecar, and are faulted in when they are made.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from holdfast_core.arena import ArenaError
from holdfast_core.config import PARITY_DIR, SidecarConfig
from holdfast_core.messages import Parity
from holdfast_core.timeline import Copy
from holdfast_core.wire import WireError

from ..arenas import Arenas
from ..slots import NoMemory
from .parity_file import ParityFile, size_for
from .wire import Code, Held, kind_of

_NAME = re.compile(r"^rank-(\d{5,})\.([01])\.parity$")
_SLACK = 1 << 20  # bytes of a buffer that may stay unused before it is made anew, smaller
_log = logging.getLogger(__name__)


class ParityStore:
    """All parity of this pod. Any thread may call; one at a time builds a rank's parity."""

    def __init__(self, config: SidecarConfig, arenas: Arenas) -> None:
        self._config, self._arenas, self._budget = config, arenas, arenas.budget
        self._folder = Path(config.shared_dir) / PARITY_DIR
        self._files: dict[int, tuple[ParityFile | None, ParityFile | None]] = defaultdict(lambda: (None, None))
        self._kept: frozenset[Copy] | None = None
        self._lock = threading.Lock()
        arenas.budget.beside = lambda: self.total_bytes

    def assume(self, config: SidecarConfig) -> None:
        """A spare, which holds nothing yet, gets its ranks."""
        self._config = config
        self._ranks = range(config.first_rank, config.first_rank + config.processes)
        self._files = dict.fromkeys(self._ranks, (None, None))

    def adopt(self) -> None:
        """Take over what an earlier sidecar of this pod left. What is not whole, broken or somebody else's is deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.iterdir()):
            try:
                self._adopt_file(path)
            except (ArenaError, OSError, WireError, ValueError) as error:
                _log.info("deleting %s: %s", path.name, error)
                path.unlink(missing_ok=True)

    def _adopt_file(self, path: Path) -> None:
        match = _NAME.match(path.name)
        if match is None or int(match[1]) not in self._arenas.ranks:
            raise ArenaError("not a name of parity of this pod")
        rank, number = int(match[1]), int(match[2])
        self._put(rank, number, ParityFile.open(path, self._config.job_uid, rank))

    def _put(self, rank: int, number: int, file: ParityFile | None) -> None:
        first, second = self._files[rank]
        self._files[rank] = (file, second) if number == 0 else (first, file)

    # --- what there is

    @property
    def total_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(file.nbytes for pair in tuple(self._files.values()) for file in pair if file is not None)

    def whole(self) -> dict[int, tuple[Parity, ...]]:
        """What is whole, by rank."""
        found = {rank: [_describe(file) for file in self._whole(rank)] for rank in self._arenas.ranks}
        return {rank: kinds for rank, held in found.items() if (kinds := tuple(k for k in held if k is not None))}

    def _whole(self, rank: int) -> list[ParityFile]:
        return [file for file in self._files[rank] if file is not None and file.whole]

    def find(self, rank: int, copy: Copy, kind: Parity | None = None) -> ParityFile | None:
        """A rank's whole parity of a copy, of that kind if one is named."""
        return next((f for f in self._whole(rank) if f.copy == copy and (kind is None or _describe(f) == kind)), None)

    def holds(self, rank: int, kind: Parity) -> bool:
        """Whether this very parity is whole."""
        return any(_describe(file) == kind for file in self._whole(rank))

    def codes(self, rank: int, kind: Parity) -> list[Code]:
        """Of which images a rank's whole parity of this kind is."""
        found = [(_describe(file), file.code) for file in self._whole(rank)]
        return [code for description, code in found if code is not None and description == kind]

    def held(self, copy: Copy, rank: int) -> tuple[Held, ...]:
        """The whole parities of a copy whose codeword has `rank` in it."""
        files = (f for mine in self._arenas.ranks for f in self._whole(mine))
        known = ((f.rank, f.code) for f in files)
        return tuple(Held(mine, code) for mine, code in known if code is not None and code.copy == copy and rank in code.group)

    # --- what is done with it

    def keep(self, copies: Iterable[Copy]) -> None:
        """From now on, the buffers of these copies are not reused. Until it is first called, that is a rank's newest."""
        self._kept = frozenset(copies)

    def drop(self, rank: int, copy: Copy, but: Parity | None = None, only: Parity | None = None) -> None:
        """Forget the parity of a copy, all of it, all but one kind, or only that; the buffers stay for the next."""
        with self._lock:
            for file in self._whole(rank):
                if file.copy == copy and _describe(file) != but and only in (None, _describe(file)):
                    file.clear()

    def begin(self, rank: int, code: Code, base: Copy | None = None) -> ParityFile:
        """A buffer for the parity of a copy, cleared, never one of a kept copy nor of the base. Raises ArenaError, NoMemory."""
        with self._lock:
            number = self._free(rank, code.copy, base)
            file = self._files[rank][number]
            if file is None or not file.is_intact() or not 0 <= file.nbytes - size_for(code) <= _SLACK:
                file = self._make(rank, number, code)
            file.begin(code)
            return file

    def _free(self, rank: int, copy: Copy, base: Copy | None) -> int:
        kept = self._kept_of(rank) | ({base} if base else set())
        copies = [file.copy if file is not None else None for file in self._files[rank]]
        free = [number for number in (0, 1) if copies[number] not in kept]
        free = free or [number for number in (0, 1) if copies[number] == copy and self._may_go(rank, number, kept)]
        if not free:
            raise ArenaError(f"both parity buffers of rank {rank} hold steps that are kept, none is free for step {copy.step}")
        return max(free, key=lambda n: (copies[n] == copy, copies[n] is None and self._files[rank][n] is not None, -n))

    def _may_go(self, rank: int, number: int, kept: Collection[Copy]) -> bool:
        """Whether parity may be made anew in its place: it may be what protects its step now, in other groups."""
        file, other = self._files[rank][number], self._files[rank][1 - number]
        return file is None or not file.whole or (other is not None and other.whole and other.copy in kept)

    def _kept_of(self, rank: int) -> frozenset[Copy]:
        if self._kept is not None:
            return self._kept
        copies = [copy for file in self._whole(rank) if (copy := file.copy) is not None]
        return frozenset([max(copies)]) if copies else frozenset()

    def _make(self, rank: int, number: int, code: Code) -> ParityFile:
        """The old buffer goes first: its memory is needed. Whoever still reads it keeps its own mapping."""
        old = self._files[rank][number]
        if old is not None:
            old.clear()
            old.path.unlink(missing_ok=True)
        self._put(rank, number, None)
        del old
        nbytes, path = size_for(code), self._folder / f"rank-{rank:05d}.{number}.parity"
        self._folder.mkdir(parents=True, exist_ok=True)
        what = f"parity of rank {rank} for a group of {len(code.group)}, of which {code.parity} may be lost"
        self._budget.require_parity(what, nbytes, self._arenas.total_bytes)
        try:
            file = ParityFile.create(path, rank, nbytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise NoMemory(self._budget.parity_advice(what, nbytes, 0, "on the shared memory volume")) from error
            raise ArenaError(f"cannot create {path}: {error.strerror}") from error
        self._put(rank, number, file)
        return file

    def finish(self, file: ParityFile) -> None:
        """Its rows and checksums are complete. The same kind of parity, if there is some, was of images that are no more."""
        file.finish(self._config.job_uid)
        with self._lock:
            for other in self._files[file.rank]:
                if other is not None and other is not file and _describe(other) == _describe(file):
                    other.clear()


def _describe(file: ParityFile) -> Parity | None:
    """None if another thread has just cleared it."""
    code = file.code
    return kind_of(code) if code is not None else None
