"""What goes over a connection between peers: documents (JSON with its length in front), and streams of bytes in frames.

A client sends a `Request` and gets an `Answer`; if it asked to `pull` and the answer has no fault, a stream follows: for each
part its frames, then an END frame, by which the sender confirms that all of it was still what it was when the last byte
left. Requests follow one another on a connection.

    frame   kind, number of bytes, the bytes
            TABLE: checksums of a part (see `sums`), before its first bytes. DATA: bytes of the part. FAULT: the stream ends
            here; the bytes are a document, an `Answer`. A part with a base comes in other frames, one a PIECE. SAME: these
            bytes are as in the base, none follow. CHANGE: by what they differ from it, a CRC-32 in front
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from holdfast_core.messages import Parity
from holdfast_core.timeline import Copy

INFO = "info"
PULL = "pull"
VERIFY = "verify"
IMAGE = "image"
PARITY = "parity"

REQUEST_LIMIT = 256 << 10  # bytes
ANSWER_LIMIT = 4 << 20
WINDOW = 4 << 20  # bytes of a DATA frame at most
PIECE = 256 << 10  # bytes that are sent, checked and summed up at a time: few calls, and still in the nearest cache (L2)

TABLE, DATA, END, FAULT, SAME, CHANGE = range(1, 7)
FRAME = struct.Struct("<II")
CRC = struct.Struct("<I")
TABLE_LIMIT = 64 << 20  # bytes


@dataclass(frozen=True)
class Image:
    """What a rank's slot holds of a copy. `manifest_crc` tells two images of one copy apart."""

    rank: int
    data_bytes: int
    manifest_bytes: int
    manifest_crc: int

    @property
    def nbytes(self) -> int:
        """Length in bytes, the manifest included."""
        return self.data_bytes + self.manifest_bytes


@dataclass(frozen=True)
class Code:
    """What a parity is the parity of: the ranks of a codeword in order, their images, how many may be lost, a block's bytes."""

    copy: Copy
    group: tuple[int, ...]
    parity: int
    block: int
    images: tuple[Image, ...]


def kind_of(code: Code) -> Parity:
    """As others than peers name it."""
    return Parity(code.copy, code.group, code.parity)


@dataclass(frozen=True)
class Held:
    """Whole parity, and for which rank's pod it was built."""

    rank: int
    code: Code


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `start + nbytes` of a rank's image, or of row `row` of the parity `of` that kind that its pod
    holds: for a while it may hold a step's parity in two groupings.

    `base`: the receiver has parity of this copy; it needs differences.
    """

    kind: str
    rank: int
    start: int
    nbytes: int
    row: int = 0
    base: Copy | None = None
    of: Parity | None = None


@dataclass(frozen=True)
class Request:
    """`info`: which images of the copy there are, how much of that of `rank` is as in the `base`, and which whole parities of
    the copy cover `rank`. `pull`: send the parts.
    `verify`: they did not arrive as they should, look whether they are still what they were in memory."""

    kind: str
    job_uid: str
    attempt: int
    copy: Copy
    rank: int = -1
    parts: tuple[Part, ...] = ()
    base: Copy | None = None


@dataclass(frozen=True)
class Answer:
    """`fault` is empty if all is well, else one of `place.Fault`, explained in `text`."""

    fault: str = ""
    text: str = ""
    images: tuple[Image, ...] = ()
    parities: tuple[Held, ...] = ()
    same: int = 0  # bytes
    before: tuple[Image, ...] = ()  # images of the base


def pieces(nbytes: int) -> int:
    """How many pieces so many bytes have."""
    return -(-nbytes // PIECE)
