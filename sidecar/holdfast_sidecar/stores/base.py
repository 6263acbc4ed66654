"""What a store can do: a few blocking calls on whole files under one root, and the errors they raise.

`steps` builds checkpoints out of these; `lane` runs them in threads with a time limit. Paths are relative, with `/`, and
made by us alone: names that a store lists are parsed, never joined into a path as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Chunk = bytes | memoryview
READ_SIZE = 8 << 20  # bytes that are read at once
TEMPORARY = ".tmp"  # suffix of files that are being written


class StoreError(Exception):
    """The store cannot be used now. The text says what is wrong and what to do."""


class NotFound(StoreError):
    """The file does not exist."""


class Reader(Protocol):
    """A file that is read from its start to its end."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end. Raises StoreError."""
        ...


class Store(Protocol):
    """A durable level. Every method blocks and raises StoreError; `lane.Lane` bounds the wait."""

    def probe(self, need: int) -> None:
        """Raise if `need` bytes could not be written now."""

    def listing(self, folder: str) -> dict[str, int]:
        """Names directly in a folder (empty: the root) with their sizes, -1 for a folder. A missing folder is empty."""

    def read(self, path: str, limit: int) -> bytes:
        """A small file as a whole; more than `limit` bytes is an error. Raises NotFound."""

    def open(self, path: str) -> AbstractContextManager[Reader]:
        """A large file, piece by piece. Raises NotFound."""

    def write(self, path: str, chunks: Iterable[Chunk]) -> None:
        """Replace a file: it appears whole and durable, or (if anything raises) not at all."""

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with the files in it. What does not exist is fine."""


def pieces(chunks: Iterable[Chunk], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size` bytes, the last one may be shorter (and is absent if empty)."""
    gathered: list[Chunk] = []
    room = size
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest.nbytes >= room:
            yield b"".join((*gathered, rest[:room]))
            rest, gathered, room = rest[room:], [], size
        if rest.nbytes:
            gathered.append(rest)
            room -= rest.nbytes
    if gathered:
        yield b"".join(gathered)
