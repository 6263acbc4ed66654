"""Brings back the image of a lost rank: its blocks are computed from what the survivors hold, straight into a slot of this pod.

Nothing is believed on the way: images are checked on arrival against the checksums of their capture, parity against those of
its making, and in the end the snapshot must agree with its own manifest. A slot is sealed only then.
"""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field

from holdfast_core import arena, manifest
from holdfast_core.erasure.code import code
from holdfast_core.erasure.layout import Layout, Source
from holdfast_core.manifest import CorruptShard
from holdfast_core.timeline import Copy

from ..arenas import Arenas
from ..slots import ArenaFile
from .client import Peer
from .encode import Connect, layout_of
from .place import Fault, PeerError, PeerPlace
from .stop import Stop
from .wire import IMAGE, PARITY, PIECE, Answer, Code, Image, Part, kind_of, pieces

PATIENCE = 15.0  # seconds for peers to come back that are out of reach; a container takes one or two to be started again
_AGAIN = 0.25
_MOST_THREADS = 8
_USELESS = (Fault.LYING, Fault.CORRUPT, Fault.LACKS, Fault.UNREACHABLE, Fault.STALLED)  # worth a try without that pod
_COMES_BACK = (Fault.UNREACHABLE, Fault.STALLED, Fault.NOT_YET)
Heard = Callable[[int], None]  # of bytes that came, in any thread
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """Whose image of which copy is to be brought back, in which attempt, and who may have parts of it."""

    rank: int
    copy: Copy
    attempt: int
    members: tuple[PeerPlace, ...]


@dataclass(frozen=True)
class Plan:
    """How to rebuild: by what code, and who has what, by place in the codeword."""

    code: Code
    lost: int
    data: dict[int, PeerPlace]
    parity: dict[int, PeerPlace]

    @property
    def layout(self) -> Layout:
        """Of the code."""
        return layout_of(self.code)

    @property
    def image(self) -> Image:
        """The lost one."""
        return self.code.images[self.lost]

    def sources(self, block: int) -> tuple[Source, ...]:
        """Where the parts of a block of the lost image come from."""
        return self.layout.sources(self.data, self.parity, self.lost, block)


@dataclass
class _Survey:
    """What the peers answered, and why others did not."""

    images: dict[Image, PeerPlace] = field(default_factory=dict)
    held: dict[Code, dict[int, PeerPlace]] = field(default_factory=lambda: defaultdict(dict))
    problems: list[PeerError] = field(default_factory=list)

    def add(self, place: PeerPlace, answer: Answer) -> None:
        """A peer's answer."""
        self.images.update(dict.fromkeys((i for i in answer.images if i.rank in place.ranks), place))
        for held in answer.parities:
            if held.rank in place.ranks and held.rank in held.code.group:
                self.held[held.code][held.code.group.index(held.rank)] = place


class Rebuilder:
    """One run of it, in a thread."""

    def __init__(
        self, arenas: Arenas, connect: Connect, wanted: Wanted, stop: Stop, heard: Heard, patience: float = PATIENCE
    ) -> None:
        self._arenas, self._connect, self._stop, self._heard, self._patience = arenas, connect, stop, heard, patience
        self._rank, self._copy, self._attempt = wanted.rank, wanted.copy, wanted.attempt
        self._members = [place for place in wanted.members if wanted.rank not in place.ranks]

    def run(self) -> int:
        """Returns the bytes received. Raises PeerError, ArenaError, CorruptShard, Stopped.

        Peers that are out of reach are waited for, `patience` seconds from the first failure on: what only they have would be
        given up else, and they may be back in a moment. The next attempt, if there is to be one, ends the wait.
        """
        end = math.inf
        while True:
            try:
                return self._run()
            except PeerError as error:
                end = min(end, time.monotonic() + self._patience)
                if error.kind not in _COMES_BACK or time.monotonic() >= end:
                    raise
                _log.info("tried again: %s", error)
                self._pause()

    def _pause(self) -> None:
        self._stop.check()
        time.sleep(_AGAIN)
        self._stop.check()

    def _run(self) -> int:
        useless: list[PeerError] = []
        while True:
            try:
                return self._try(useless)
            except PeerError as error:
                if error.place is None or error.kind not in _USELESS:
                    raise self._failed(error, useless) from error
                useless.append(error)

    def _failed(self, error: PeerError, useless: list[PeerError]) -> PeerError:
        others = "".join(f"; {other}" for other in useless if str(other) not in str(error))
        passing = next(
            (other.kind for other in useless if other.kind.passing), error.kind
        )  # with that pod it might have worked
        return PeerError(passing, f"rank {self._rank}, step {self._copy.step} can't be rebuilt: {error}{others}", error.place)

    def _try(self, useless: list[PeerError]) -> int:
        without = {error.index for error in useless}
        plan = self._choose(self._survey([place for place in self._members if place.index not in without]))
        file, index, area = self._arenas.allocate_image(
            self._rank, plan.image.data_bytes, plan.image.manifest_bytes, self._copy.step
        )
        received = self._pull(plan, area)
        self._seal(plan.image, file, index, area)
        return received

    # --- what there is

    def _survey(self, places: Iterable[PeerPlace]) -> _Survey:
        survey = _Survey()
        for place in places:
            try:
                with self._connect(place, self._stop) as peer:
                    survey.add(place, peer.info(self._copy, self._rank))
            except PeerError as error:
                if error.kind is Fault.FENCED:
                    raise
                survey.problems.append(error)
        return survey

    def _choose(self, survey: _Survey) -> Plan:
        """The code that most pods hold parity of, among those with enough left."""
        plans = [self._plan(survey, kind, holders) for kind, holders in survey.held.items()]
        able = [p for p in plans if p.layout.decodable(p.data, p.parity, [p.lost])]
        if able:
            return max(able, key=lambda plan: (len(plan.parity), len(plan.data)))
        kind = next((error.kind for error in survey.problems if error.kind.passing), Fault.LACKS)
        raise PeerError(kind, self._why_not(plans, survey))

    def _plan(self, survey: _Survey, kind: Code, holders: dict[int, PeerPlace]) -> Plan:
        data = {i: survey.images[image] for i, image in enumerate(kind.images) if image in survey.images}
        lost = kind.group.index(self._rank)
        data.pop(lost, None)
        return Plan(kind, lost, data, holders)

    def _why_not(self, plans: list[Plan], survey: _Survey) -> str:
        reasons = [f"parity for ranks {_names(p.code.group)} has too little left: {self._left(p)}" for p in plans]
        reasons += [] if plans else [f"no pod that answered holds parity of step {self._copy.step} for rank {self._rank}"]
        return "; ".join([*reasons, *map(str, survey.problems)])

    def _left(self, plan: Plan) -> str:
        need, group = plan.layout.data, plan.code.group
        data, parity = _names(group[i] for i in plan.data), _names(group[i] for i in plan.parity)
        return (
            f"snapshots of ranks {data or 'none'}, parity with ranks {parity or 'none'}, {need} parts of each stripe are needed"
        )

    # --- bytes

    def _pull(self, plan: Plan, area: memoryview) -> int:
        """Block by block, several at a time: one thread could not even decrypt as fast as networks are."""
        crew = self._stop.child()
        with ThreadPoolExecutor(min(plan.layout.data, os.cpu_count() or 1, _MOST_THREADS), "rebuild") as pool:
            blocks = [pool.submit(self._rebuild_block, plan, block, area, crew) for block in range(plan.layout.data)]
            try:
                return sum(done.result() for done in as_completed(blocks))
            except BaseException:
                crew.set()  # the others end at their next piece
                raise

    def _rebuild_block(self, plan: Plan, block: int, area: memoryview, stop: Stop) -> int:
        stripe = plan.sources(block)
        start, end = plan.layout.span(block, plan.image.nbytes)
        parts = [_part(plan, source, end - start) for source in stripe]
        with ExitStack() as stack:
            peers = [stack.enter_context(self._connect(_place(plan, source), stop)) for source in stripe]
            for peer, part in zip(peers, parts, strict=True):
                peer.pull(self._copy, [part] if part else [])
            sizes = [part.nbytes if part else 0 for part in parts]
            _decode(plan, block, dict(zip(stripe, zip(peers, sizes, strict=True), strict=True)), area[start:end], self._heard)
            for peer in peers:
                peer.finish()
            return sum(peer.received for peer in peers)

    # --- the end

    def _seal(self, image: Image, file: ArenaFile, index: int, area: memoryview) -> None:
        """Only what agrees with its own manifest becomes a snapshot."""
        raw = bytes(area[image.data_bytes :])
        if zlib.crc32(raw) != image.manifest_crc:
            raise CorruptShard(f"rank {self._rank}: the manifest of step {self._copy.step} came back wrong")
        found = manifest.load(raw)
        wanted = (self._copy.step, self._copy.attempt, self._rank, file.header.world_size)
        if (found.step, found.attempt, found.rank, found.world_size) != wanted:
            raise CorruptShard(f"rank {self._rank}: what came back is not step {self._copy.step} of this rank")
        manifest.verify(found, area[: image.data_bytes])
        self._stop.check()
        arena.seal(
            file.buf, file.header, index, step=self._copy.step, attempt=self._copy.attempt, writer=self._attempt,
            data_bytes=image.data_bytes, manifest=raw,
        )  # fmt: skip


def _place(plan: Plan, source: Source) -> PeerPlace:
    return (plan.data if source.kind == "data" else plan.parity)[source.member]


def _part(plan: Plan, source: Source, most: int) -> Part | None:
    """What to read of a source: no more than there is, nor than the lost block has."""
    rank = plan.code.group[source.member]
    if source.kind == "data":
        start, end = plan.layout.span(source.index, plan.code.images[source.member].nbytes)
        part = Part(IMAGE, rank, start, min(most, end - start))
    else:
        part = Part(PARITY, rank, 0, min(most, plan.layout.block), row=source.index, of=kind_of(plan.code))
    return part if part.nbytes > 0 else None


def _decode(plan: Plan, block: int, sources: Mapping[Source, tuple[Peer, int]], target: memoryview, heard: Heard) -> None:
    """Piece by piece in lockstep. `sources` has the bytes that each sends."""
    arithmetic = code(plan.layout.data, plan.layout.parity)
    scratch = {source: memoryview(bytearray(PIECE)) for source in sources}
    for number in range(pieces(len(target))):
        out = target[number * PIECE : (number + 1) * PIECE]
        have = {}
        for source, (peer, nbytes) in sources.items():
            piece = scratch[source][: max(0, min(len(out), nbytes - number * PIECE))]
            if piece:
                peer.next_piece(piece)
            have[source.position] = piece
        arithmetic.rebuild(have, block, out)
        heard(len(out))


def _names(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
