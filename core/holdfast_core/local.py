"""Messages on a pod's Unix socket, between the sidecar and the launcher and trainer processes beside it.

One JSON document a line: `{"kind": "Sealed", "id": 0, "body": {...}}`. A request has an id above 0 and gets one line with the
same id back: its reply, or `{"kind": "Error", "id": ..., "body": {"message": ...}}`. Everything else is a notice (id 0). The
sidecar may die and come back at any time: clients reconnect, say `Hello` again with their whole state, and go on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from . import wire


@dataclass(frozen=True)
class Process:
    """A trainer process as its launcher knows it; `exit_code` or `signal` is set once its part in the attempt has ended.

    `kept`: the process itself lives on. Once ended it is parked: it touches no snapshot and waits for the next attempt, in
    which it then runs under the same pid.
    """

    local_rank: int
    pid: int
    exit_code: int | None = None
    signal: int | None = None
    log_tail: tuple[str, ...] = ()
    kept: bool = False

    @property
    def ended(self) -> bool:
        """Whether it takes part in the attempt no more: it is gone (and reaped), or parked."""
        return self.exit_code is not None or self.signal is not None


@dataclass(frozen=True)
class Hello:
    """launcher -> sidecar, first line of each connection: which attempt's processes it has. Repeated on every change."""

    pid: int
    attempt: int = 0
    processes: tuple[Process, ...] = ()
    standby: str = ""  # "ready", "warming", or why there is no warm standby


@dataclass(frozen=True)
class Launch:
    """sidecar -> launcher: start the processes of an attempt (earlier ones are stopped first). Idempotent by attempt.

    `arenas`: for each process the arena that it will be told to restore from ("": none), so that it can map it early.
    """

    attempt: int
    world_size: int
    first_rank: int
    processes: int
    master_addr: str
    master_port: int
    node_rank: int
    nodes: int
    env: dict[str, str] = field(default_factory=dict)
    arenas: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stop:
    """sidecar -> launcher: end all processes of attempts up to this one; SIGTERM, then SIGKILL after the grace."""

    attempt: int
    grace_seconds: float


@dataclass(frozen=True)
class Finish:
    """sidecar -> launcher: nothing more to do, exit with this code."""

    exit_code: int


@dataclass(frozen=True)
class Attach:
    """trainer -> sidecar, request, first line: which rank of which attempt this is."""

    rank: int
    attempt: int


@dataclass(frozen=True)
class Attached:
    """Reply to Attach: the slot to restore from (`path` empty: start from scratch)."""

    path: str = ""
    slot: int = 0
    step: int = -1


@dataclass(frozen=True)
class Reserve:
    """trainer -> sidecar, request: an arena whose slots hold `slot_bytes`; the answer is Reserved or Error."""

    rank: int
    attempt: int
    slot_bytes: int


@dataclass(frozen=True)
class Reserved:
    """Path of the arena to map; older generations stay until a step is committed in this one."""

    path: str


@dataclass(frozen=True)
class Sealed:
    """trainer -> sidecar: a slot was published. What it cost is of this snapshot alone, in seconds and bytes.

    `stall_seconds` is what the training loop waited inside `snapshot()`, `fence_seconds` what it waited for the copy later,
    `capture_seconds` how long copy and checksum took, wherever they ran. `copied` counts the bytes that were copied anew (the
    rest was frozen since the last snapshot), -1 if unknown; `mode` says how the capture was done, and why.
    """

    rank: int
    attempt: int
    step: int
    path: str
    slot: int
    nbytes: int
    stall_seconds: float
    fence_seconds: float = 0.0
    capture_seconds: float = 0.0
    copied: int = -1
    mode: str = ""


@dataclass(frozen=True)
class Skipped:
    """trainer -> sidecar: this step has no snapshot, and why."""

    rank: int
    attempt: int
    step: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """trainer -> sidecar: a step is finished."""

    rank: int
    attempt: int
    step: int
    loss: float | None = None


@dataclass(frozen=True)
class Restored:
    """trainer -> sidecar: the state of `step` is loaded and verified."""

    rank: int
    attempt: int
    step: int
    seconds: float


@dataclass(frozen=True)
class Corrupt:
    """trainer -> sidecar: the slot did not match its checksums at load; the trainer exits after this."""

    rank: int
    attempt: int
    step: int
    message: str


@dataclass(frozen=True)
class Error:
    """Reply to a request that failed; the text says what to do."""

    message: str


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (Hello, Launch, Stop, Finish, Attach, Attached, Reserve, Reserved, Sealed, Skipped, Progress,
                 Restored, Corrupt, Error)
}  # fmt: skip

Message = (
    Hello | Launch | Stop | Finish | Attach | Attached | Reserve | Reserved | Sealed | Skipped | Progress
    | Restored | Corrupt | Error
)  # fmt: skip


def pack(message: Message, id: int = 0) -> bytes:
    """One line, newline included."""
    document = {"kind": type(message).__name__, "id": id, "body": wire.encode(message)}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def unpack(line: bytes) -> tuple[Message, int]:
    """The message of a line and its id; raises WireError."""
    try:
        document: Any = json.loads(line)
        kind, number = KINDS[document["kind"]], int(document.get("id", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise wire.WireError(f"bad line on the local socket: {line[:80]!r}: {error}") from error
    message: Message = wire.decode(kind, document.get("body", {}))
    return message, number
