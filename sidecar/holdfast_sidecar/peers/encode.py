"""Builds a rank's parity of a copy: the blocks that make up its rows are pulled from the other members and added up.

All members send at the same time and piece by piece, so that what is added up is still in the cache, and the network never
waits for the sum of more than a piece. The parity is whole when every sender confirmed that nothing changed while it sent.

Where much is as it was in a copy whose parity is still held, that parity is brought up to date by the differences instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from holdfast_core import crcjoin
from holdfast_core.arena import ArenaError
from holdfast_core.erasure.code import Code as Arithmetic
from holdfast_core.erasure.code import Xor, code
from holdfast_core.erasure.layout import Layout
from holdfast_core.fastcopy import crc32
from holdfast_core.messages import Parity
from holdfast_core.timeline import Copy

from ..arenas import Arenas
from .client import Peer
from .holdings import image_of
from .parity import ParityStore
from .parity_file import ParityFile
from .place import Fault, PeerError, PeerPlace, holder
from .stop import Stop
from .wire import IMAGE, PIECE, Code, Image, Part, kind_of, pieces

Connect = Callable[[PeerPlace, Stop], Peer]
_WORTH = 1 / 3  # of an image must be as it was: comparing costs about as much as sending
_log = logging.getLogger(__name__)


class _Outdated(Exception):
    """The base is of no use after all."""


@dataclass(frozen=True)
class Task:
    """Parity of a copy, for the rank's pod to hold: of the ranks of `group`, it among them, `parity` of which may be lost."""

    rank: int
    copy: Copy
    group: tuple[int, ...]
    parity: int
    members: tuple[PeerPlace, ...]
    base: Copy | None = None

    @property
    def me(self) -> int:
        """The rank's place in the codeword."""
        return self.group.index(self.rank)


@dataclass(frozen=True)
class Rows:
    """What makes up the rows that a member holds, for images of so many bytes."""

    layout: Layout
    me: int
    lengths: tuple[int, ...]

    def spans(self, row: int) -> list[tuple[int, int, int]]:
        """By position: the member whose block it is, its start and end in that member's image."""
        members = self.layout.contributors(self.layout.stripes_held(self.me)[row])
        return [(m, *self.layout.span(position, self.lengths[m])) for position, m in enumerate(members)]

    def parts(self, group: Sequence[int], base: Copy | None = None) -> dict[int, list[Part]]:
        """What each other member is to send, in the order in which it is needed."""
        parts: dict[int, list[Part]] = {i: [] for i in range(len(group)) if i != self.me}
        for row in range(self.layout.parity):
            for member, start, end in self.spans(row):
                if end > start:
                    parts[member].append(Part(IMAGE, group[member], start, end - start, base=base))
        return parts


class Encoder:
    """One run of it, in a thread."""

    def __init__(self, arenas: Arenas, store: ParityStore, connect: Connect, task: Task, stop: Stop) -> None:
        self._arenas, self._store, self._connect, self._task, self._stop = arenas, store, connect, task, stop
        self._scratch = memoryview(bytearray(PIECE * max(1, len(task.group) - task.parity)))
        self._same: dict[int, int] = {}
        self._before: dict[int, Image | None] = {}

    def run(self) -> int:
        """Returns the bytes received. Raises PeerError, ArenaError, Stopped."""
        with ExitStack() as stack:
            others = [i for i in range(len(self._task.group)) if i != self._task.me]
            peers = {i: stack.enter_context(self._connect(self._place(i), self._stop)) for i in others}
            if self._is_held(peers):
                return 0
            images = tuple(self._image(i, peers) for i in range(len(self._task.group)))
            base = self._base(self._code(images))
            if base is None or not self._update(base, self._code(images), peers):
                self._encode(self._code(images), peers)
            return sum(peer.received for peer in peers.values())

    def _place(self, member: int) -> PeerPlace:
        return holder(self._task.members, self._task.group[member])

    def _is_held(self, peers: dict[int, Peer]) -> bool:
        """Whether it is whole already. Not if a member that answers has another image of the copy now: it may have got it back
        from a store, and who had to does not tell."""
        task = self._task
        found = self._store.codes(task.rank, Parity(task.copy, task.group, task.parity))
        return any(all(self._agrees(peers[i], code.images[i]) for i in peers) for code in found)

    def _agrees(self, peer: Peer, image: Image) -> bool:
        try:
            now = peer.info(self._task.copy, image.rank).images
        except PeerError:
            return True
        return all(other == image for other in now if other.rank == image.rank)

    def _image(self, member: int, peers: dict[int, Peer]) -> Image:
        rank, copy = self._task.group[member], self._task.copy
        if member == self._task.me:
            return image_of(self._arenas.require(rank, copy))
        answer = peers[member].info(copy, rank, self._task.base)
        self._same[rank], self._before[rank] = answer.same, next((i for i in answer.before if i.rank == rank), None)
        for image in answer.images:
            if image.rank == rank:
                return image
        raise PeerError(Fault.LACKS, f"rank {rank} has no step {copy.step} in memory there", peers[member].place)

    def _code(self, images: tuple[Image, ...]) -> Code:
        layout = Layout.of(len(images), self._task.parity, [image.nbytes for image in images])
        return Code(self._task.copy, self._task.group, layout.parity, layout.block, images)

    # --- from whole images

    def _encode(self, kind: Code, peers: dict[int, Peer]) -> None:
        rows = Rows(layout_of(kind), self._task.me, tuple(image.nbytes for image in kind.images))
        file = self._store.begin(self._task.rank, kind)
        for member, parts in rows.parts(kind.group).items():
            peers[member].pull(kind.copy, parts)
        for row in range(kind.parity):
            self._encode_row(file, rows, row, peers)
        for peer in peers.values():
            peer.finish()
        self._store.finish(file)

    def _encode_row(self, file: ParityFile, rows: Rows, row: int, peers: dict[int, Peer]) -> None:
        spans = rows.spans(row)
        target, arithmetic = file.row(row), code(rows.layout.data, rows.layout.parity)
        sources = [peers[member] for member, _, _ in spans]
        add = self._sum_up if isinstance(arithmetic, Xor) else self._combine
        for number in range(pieces(rows.layout.block)):
            out = target[number * PIECE : (number + 1) * PIECE]
            sizes = [_size(len(out), number, start, end) for _, start, end in spans]
            file.set_sum(row, number, add(arithmetic, sources, sizes, row, out))

    def _sum_up(self, xor: Arithmetic, sources: Sequence[Peer], sizes: Sequence[int], row: int, out: memoryview) -> int:
        """The checksum of a row's piece. The first part of it is received in its place, the others into the cache."""
        sums = []
        for position, (peer, size) in enumerate(zip(sources, sizes, strict=True)):
            piece = self._scratch[:size] if position else out[:size]
            sums.append(_receive(peer, piece))
            if not position:
                out[size:] = bytes(len(out) - size)
            elif size:
                xor.add(out, row, position, piece)
        even = all(size == len(out) for size in sizes)
        return crcjoin.of_sum(sums, len(out)) if even else crc32(out)

    def _combine(self, code: Arithmetic, sources: Sequence[Peer], sizes: Sequence[int], row: int, out: memoryview) -> int:
        places = [self._scratch[i * PIECE : i * PIECE + size] for i, size in enumerate(sizes)]
        for peer, piece in zip(sources, places, strict=True):
            _receive(peer, piece)
        code.encode_row(places, row, out)
        return crc32(out)

    # --- from differences

    def _base(self, kind: Code) -> ParityFile | None:
        """The parity to go on from, if it is of the images that the members have now, and much of them is as it was."""
        base = self._task.base
        file = self._store.find(self._task.rank, base, replace(kind_of(kind), copy=base)) if base else None
        code = file.code if file is not None else None
        if code is None or not _is_alike(kind, code):
            return None
        others = [(new, old) for new, old in zip(kind.images, code.images, strict=True) if new.rank != self._task.rank]
        of_these = all(self._before[old.rank] == old for _, old in others)
        return file if of_these and all(self._same[new.rank] >= _WORTH * new.nbytes for new, _ in others) else None

    def _update(self, base: ParityFile, kind: Code, peers: dict[int, Peer]) -> bool:
        """False if it can't be done this way."""
        try:
            self._add_changes(base, kind, peers)
        except (PeerError, _Outdated, ArenaError) as error:
            if isinstance(error, PeerError) and error.kind not in (Fault.LACKS, Fault.CORRUPT):
                raise
            _log.info("parity of rank %d, step %d, is made from whole snapshots: %s", self._task.rank, kind.copy.step, error)
            for peer in peers.values():
                peer.close()  # in the middle of something
            return False
        return True

    def _add_changes(self, base: ParityFile, kind: Code, peers: dict[int, Peer]) -> None:
        old, serial = base.code, base.serial
        if old is None:
            raise _Outdated("its parity is not held any more")
        lengths = tuple(max(a.nbytes, b.nbytes) for a, b in zip(kind.images, old.images, strict=True))
        rows = Rows(layout_of(kind), self._task.me, lengths)
        file = self._store.begin(self._task.rank, kind, old.copy)
        for member, parts in rows.parts(kind.group, old.copy).items():
            peers[member].pull(kind.copy, parts)
        for row in range(kind.parity):
            self._update_row(base, file, rows, row, peers)
        for peer in peers.values():
            peer.finish()
        if base.serial != serial:
            raise _Outdated("its parity was dropped meanwhile")
        self._store.finish(file)

    def _update_row(self, base: ParityFile, file: ParityFile, rows: Rows, row: int, peers: dict[int, Peer]) -> None:
        spans, sums = rows.spans(row), base.row_sums(row)
        source, target, arithmetic = base.row(row), file.row(row), code(rows.layout.data, rows.layout.parity)
        for number in range(pieces(rows.layout.block)):
            out = target[number * PIECE : (number + 1) * PIECE]
            out[:] = source[number * PIECE : (number + 1) * PIECE]
            if crc32(out) != sums[number]:
                raise _Outdated("its parity does not match its checksums in memory")
            changed = False
            for position, (member, start, end) in enumerate(spans):
                piece = self._scratch[: _size(len(out), number, start, end)]
                if piece and peers[member].next_change(piece):
                    arithmetic.add(out, row, position, piece)
                    changed = True
            file.set_sum(row, number, crc32(out) if changed else sums[number])


def layout_of(kind: Code) -> Layout:
    """Where what lies."""
    return Layout(len(kind.group), kind.parity, kind.block)


def _is_alike(new: Code, base: Code) -> bool:
    """Whether two parities differ by what is in the images alone. The manifests at their ends may be of any length."""
    data = [[(image.rank, image.data_bytes) for image in kind.images] for kind in (new, base)]
    return data[0] == data[1] and replace(new, copy=base.copy, images=base.images) == base


def _size(most: int, number: int, start: int, end: int) -> int:
    """Of a piece of a block."""
    return max(0, min(most, end - start - number * PIECE))


def _receive(peer: Peer, piece: memoryview) -> int:
    return peer.next_piece(piece) if piece else 0
