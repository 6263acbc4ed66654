"""What the protocol did, a JSON object a line in the log, for replays against the model (`spec`). Off unless configured.

{"t": seconds, "pod": name, "index": its index, "attempt": n, "what": ..., more fields by what}

prepare   level, step, of, levels      this attempt resumes from (level "" : from scratch); `of` is the attempt that wrote it
prepared  level, step, of              every rank of this pod has it
failed    level, step, of, rank        could not be had (level "": another reason)
sealed    rank, step, of               a snapshot was published in memory
holds     rank, step, of, group, parity, round   whole parity, of these ranks
decided   order, level, step, of, round, groups  the coordinator's word, as it is sent
obeyed    order, level, step, of, round, groups  heard by a member
kept      protected, pending           steps that the writer may not overwrite (null: none), after an order
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from holdfast_core.messages import Order, Reached, Source
from holdfast_core.timeline import Copy

_log = logging.getLogger(__name__)
PREFIX = "trace "


class Trace:
    """Writes lines if `on`. `where` gives pod, index and attempt."""

    def __init__(self, on: bool, where: Callable[[], dict[str, Any]]) -> None:
        self._on, self._where = on, where

    def __call__(self, what: str, **fields: Any) -> None:
        """One line."""
        if self._on:
            _log.info("%s%s", PREFIX, json.dumps({"t": round(time.time(), 4), **self._where(), "what": what, **fields}))

    def source(self, what: str, source: Source | None, **fields: Any) -> None:
        """About what an attempt resumes from."""
        found = (
            {"level": source.level, "step": source.step, "of": source.attempt} if source else {"level": "", "step": -1, "of": 0}
        )
        self(what, **found, **fields)

    def order(self, what: str, order: Order) -> None:
        """About the coordinator's word."""
        groups = {"groups": [g.members for g in order.groups]} if order.groups else {}
        self(
            what, order=order.kind, level=order.level, step=order.copy.step, of=order.copy.attempt, round=order.round, **groups
        )

    def sealed(self, rank: int, copy: Copy) -> None:
        """A snapshot in memory."""
        self("sealed", rank=rank, step=copy.step, of=copy.attempt)

    def kept(self, protected: Copy | None, pending: Copy | None) -> None:
        """What the writer may not overwrite."""
        self("kept", protected=protected.step if protected else None, pending=pending.step if pending else None)

    def reporting(self, report: Callable[[Reached], None]) -> Callable[[Reached], None]:
        """The same report, with a line about each parity that is whole."""

        def both(reached: Reached) -> None:
            if not reached.error:
                self.holds(reached)
            report(reached)

        return both

    def holds(self, reached: Reached) -> None:
        """Whole parity."""
        copy = reached.copy
        self("holds", rank=reached.rank, step=copy.step, of=copy.attempt, group=reached.group, parity=reached.parity,
             round=reached.round)  # fmt: skip
