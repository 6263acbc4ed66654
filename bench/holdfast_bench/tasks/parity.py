"""Parity of a group's images and rebuilding one of them, through the layout and piece by piece as the sidecars do it, beside
the plain call over whole blocks: NumPy's XOR, or ISA-L. All in shared memory, one thread."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from holdfast_core.erasure.code import code
from holdfast_core.erasure.layout import ALIGN, PIECE, Layout
from holdfast_core.fastcopy import crc32

Blocks = list[memoryview]


class Task:
    """Verbs: open, encode, rebuild, facts, quit. As many images as there are parities are lost; the first is rebuilt."""

    def __init__(self, system: str) -> None:
        self._folder = Path(os.environ["HOLDFAST_BENCH_FOLDER"])

    def open(self, members: int, parity: int, nbytes: int) -> dict[str, int]:
        """Make images of equal blocks, and the parity that a rebuild needs. `nbytes`: of an image, about."""
        unit = ALIGN * (members - parity)
        nbytes = max(1, nbytes // unit) * unit
        self._layout = Layout.of(members, parity, [nbytes] * members)
        self._code = code(self._layout.data, parity)
        self._images = [self._memory(nbytes) for _ in range(members)]
        for seed, image in enumerate(self._images):
            _fill(image, seed)
        self._sum = crc32(self._images[0])
        self._parities = {m: self._memory(self._layout.parity_bytes) for m in range(parity, members)}
        for member in self._parities:
            self._encode(member)
        self._whole = _Whole(self._layout)
        return {"nbytes": nbytes, "block": self._layout.block, "piece": PIECE}

    def encode(self) -> dict[str, float]:
        """One member's rows out of the others' blocks: seconds of the plain call and of ours, and the bytes read."""
        member = self._layout.members - 1
        work = [(self._blocks(stripe), row, self._row(member, row)) for row, stripe in self._held(member)]
        bound = sum(_timed(partial(self._whole.encode, *one)) for one in work)
        expected = crc32(self._parities[member])
        ours = _timed(partial(self._encode, member))
        _same(expected, crc32(self._parities[member]))
        return {"bound": bound, "ours": ours, "nbytes": float(sum(b.nbytes for blocks, _, _ in work for b in blocks))}

    def rebuild(self) -> dict[str, float]:
        """The first image out of the survivors': seconds of the plain call and of ours, and the bytes read."""
        work = [(self._parts(block), block, self._block(0, block)) for block in range(self._layout.data)]
        self._spoil()
        bound = sum(_timed(partial(self._whole.rebuild, *one)) for one in work)
        _same(self._sum, crc32(self._images[0]))
        self._spoil()
        ours = _timed(self._rebuild)
        _same(self._sum, crc32(self._images[0]))
        return {"bound": bound, "ours": ours, "nbytes": float(sum(b.nbytes for parts, _, _ in work for b in parts.values()))}

    def facts(self) -> dict[str, int]:
        """Nothing more."""
        return {}

    def quit(self) -> None:
        """The folder goes with the process."""

    def _encode(self, member: int) -> None:
        for row, stripe in self._held(member):
            blocks, out = self._blocks(stripe), self._row(member, row)
            for at in range(0, self._layout.block, PIECE):
                self._code.encode_row([block[at : at + PIECE] for block in blocks], row, out[at : at + PIECE])

    def _rebuild(self) -> None:
        for block in range(self._layout.data):
            parts, out = self._parts(block), self._block(0, block)
            for at in range(0, out.nbytes, PIECE):
                have = {position: part[at : at + PIECE] for position, part in parts.items()}
                self._code.rebuild(have, block, out[at : at + PIECE])

    def _held(self, member: int) -> Sequence[tuple[int, int]]:
        return list(enumerate(self._layout.stripes_held(member)))

    def _blocks(self, stripe: int) -> Blocks:
        return [self._block(member, block) for block, member in enumerate(self._layout.contributors(stripe))]

    def _block(self, member: int, block: int) -> memoryview:
        return self._images[member][slice(*self._layout.span(block, self._images[member].nbytes))]

    def _row(self, member: int, row: int) -> memoryview:
        return self._parities[member][slice(*self._layout.row_span(row))]

    def _parts(self, block: int) -> dict[int, memoryview]:
        found = self._layout.sources(self._parities, self._parities, 0, block)
        return {s.position: self._block(s.member, s.index) if s.kind == "data" else self._row(s.member, s.index) for s in found}

    def _spoil(self) -> None:
        np.frombuffer(self._images[0], np.uint64)[:] = 0

    def _memory(self, nbytes: int) -> memoryview:
        path = self._folder / f"image-{len(list(self._folder.iterdir()))}"
        with open(path, "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return memoryview(mmap.mmap(file.fileno(), nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE))


class _Whole:
    """The libraries called with whole blocks: NumPy's XOR of one operand after the other, or one call of ISA-L."""

    def __init__(self, layout: Layout) -> None:
        self._code = code(layout.data, layout.parity)

    def encode(self, blocks: Blocks, row: int, out: memoryview) -> None:
        """One row."""
        if self._code.parity == 1:
            _xor(blocks, out)
        else:
            self._code.encode_row(blocks, row, out)

    def rebuild(self, parts: dict[int, memoryview], block: int, out: memoryview) -> None:
        """One block."""
        if self._code.parity == 1:
            _xor(list(parts.values()), out)
        else:
            self._code.rebuild(parts, block, out)


def _xor(blocks: Blocks, out: memoryview) -> None:
    first, second, *others = [np.frombuffer(block, np.uint64) for block in blocks]
    target = np.frombuffer(out, np.uint64)
    np.bitwise_xor(first, second, out=target)
    for other in others:
        np.bitwise_xor(target, other, out=target)


def _fill(image: memoryview, seed: int) -> None:
    words = np.frombuffer(image, np.uint64)
    generator = np.random.default_rng(seed)
    for at in range(0, len(words), PIECE):
        words[at : at + PIECE] = generator.integers(0, 2**64, len(words[at : at + PIECE]), np.uint64)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _same(expected: int, found: int) -> None:
    if expected != found:
        raise RuntimeError("the two ways do not come to the same bytes")
