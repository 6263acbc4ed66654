"""What a restarted sidecar must know to go on: written whole to shared memory on each change of phase.

It lies beside the arenas: what outlives the sidecar's container is exactly what they outlive too.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from holdfast_core import wire
from holdfast_core.messages import Command, RankState, Source
from holdfast_core.timeline import Copy, History

_log = logging.getLogger(__name__)

IDLE, PREPARING, PREPARED, RUNNING = "idle", "preparing", "prepared", "running"
STOPPING, EXITED, FAILED, FINISHED = "stopping", "exited", "failed", "finished"


@dataclass(frozen=True)
class Record:
    """The attempt as this sidecar knows it. `prepare` is the command that began it."""

    job_uid: str
    attempt: int = 0
    phase: str = IDLE
    prepare: Command | None = None
    committed: Copy | None = None
    error: str = ""
    error_source: Source | None = None
    passing: bool = False
    exit_code: int = 0
    ranks: tuple[RankState, ...] = ()
    every: int = 0  # interval of snapshots in steps; 0: none was ordered

    @property
    def history(self) -> History:
        """The job's timeline."""
        return self.prepare.history if self.prepare else ()

    @property
    def source(self) -> Source | None:
        """Where the attempt's state came from."""
        return self.prepare.source if self.prepare else None

    @property
    def source_copy(self) -> Copy | None:
        """The step that the attempt resumed from."""
        return Copy(self.source.step, self.source.attempt) if self.source else None


class RecordFile:
    """`path` is replaced atomically; no sync, because the memory it stands in does not survive the machine anyway."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, job_uid: str) -> Record:
        """What was saved; a new record if there is none for this job, or it can't be read."""
        try:
            found = wire.loads(Record, self._path.read_bytes())
        except FileNotFoundError:
            return Record(job_uid)
        except (wire.WireError, OSError) as error:
            _log.warning("cannot use %s, starting without it: %s", self._path, error)
            return Record(job_uid)
        return found if found.job_uid == job_uid else Record(job_uid)

    def save(self, record: Record) -> None:
        """Replace the file. A full volume is logged, not raised: the attempt goes on without a record."""
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_bytes(wire.dumps(record))
            os.replace(temporary, self._path)
        except OSError as error:
            _log.error("cannot save %s: %s", self._path, error.strerror)
