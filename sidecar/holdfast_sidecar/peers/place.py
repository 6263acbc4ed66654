"""A peer, and what can be wrong with one: every error names the pod and says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What kind of trouble a peer makes."""

    UNREACHABLE = "unreachable"  # no connection, or it broke
    STALLED = "stalled"  # connected, but no byte in time
    FENCED = "fenced"  # it is in a later attempt than we are: final
    NOT_YET = "not-yet"  # it is in an earlier attempt: worth another try
    REFUSED = "refused"  # it does not let us in, or does not understand us
    LYING = "lying"  # its bytes do not match its checksums
    CORRUPT = "corrupt"  # it found its own memory corrupt, and says so
    LACKS = "lacks"  # it does not have what was asked for

    @property
    def passing(self) -> bool:
        """Whether it says nothing about what the peer has: a moment later it may be different."""
        return self in (Fault.UNREACHABLE, Fault.STALLED, Fault.NOT_YET, Fault.FENCED, Fault.REFUSED)


@dataclass(frozen=True)
class PeerPlace:
    """A pod of the attempt: where its peer server listens, and its ranks."""

    index: int
    pod: str
    host: str
    port: int
    first_rank: int
    processes: int

    @property
    def ranks(self) -> range:
        """Its global ranks."""
        return range(self.first_rank, self.first_rank + self.processes)


class PeerError(Exception):
    """Something that needs a peer could not be done. `index` is the pod to blame, -1 if it is no single one."""

    def __init__(self, kind: Fault, text: str, place: PeerPlace | None = None) -> None:
        super().__init__(f"pod {place.pod}: {text}" if place else text)
        self.kind, self.place = kind, place
        self.index = place.index if place else -1
        self.pod = place.pod if place else ""


def holder(members: tuple[PeerPlace, ...], rank: int) -> PeerPlace:
    """The pod of a rank; raises PeerError if the attempt has none."""
    for place in members:
        if rank in place.ranks:
            return place
    raise PeerError(Fault.LACKS, f"no pod of this attempt has rank {rank}")
