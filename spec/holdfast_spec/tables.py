"""Values by number: a state is a few small integers, and what was worked out about a part of it is worked out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Table(Generic[T]):
    """Numbers values in the order in which they come. `key` makes those comparable that can't be hashed."""

    def __init__(self, key: Callable[[T], Hashable] | None = None) -> None:
        self.values: list[T] = []
        self._ids: dict[Any, int] = {}
        self._key = key

    def id(self, value: T) -> int:
        """The number of a value."""
        key = self._key(value) if self._key is not None else value
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self.values)
            self.values.append(value)
        return found
