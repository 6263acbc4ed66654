"""Which step is brought to peers' RAM next, and when it counts as protected. Pure; time is an argument (monotonic seconds).

One step at a time (a *round*): all members make parity of it in their groups and say so. When all have, and not before, the
step is committed at the level `peers`, and whatever protected the step before may go. A round that fails is released. So each
member keeps the protected step and at most one more, and holds on to both until it is told which one counts (`keeping`).

No round begins while a member is away. It may be dead, and then what the others hold for it is all that is left of it: that
stays until the planner has decided. And a coordinator that starts anew knows nothing of earlier rounds: what all hold whole it
commits first. Words that crossed an order are told from answers to it by the round's number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from holdfast_core.config import PeersConfig
from holdfast_core.messages import PEERS, Member, Order, Reached
from holdfast_core.protection import groups_of, rank_groups, suspect
from holdfast_core.timeline import Copy, History, is_valid

ROUND_SECONDS = 600.0
PACE_SECONDS = 0.5  # a round takes each sidecar some 10 ms of CPU, however little it moves; a lost node costs seconds anyway
BLAMES = 3  # failures in a row that name the same pod, before the others go on without it
AMNESTY_SECONDS = 60.0
_BACKOFF = (0.5, 8.0)  # seconds from a failed round to the next one: at first, at most
_Held = tuple[Copy, tuple[int, ...], int]


@dataclass(frozen=True)
class _Round:
    number: int
    copy: Copy
    started: float


class Protect:
    """The coordinator's view of one attempt. `without` are the pods that no group counts on, and until when.

    `pace`: seconds from the beginning of a round to that of the next one, at least.
    """

    def __init__(
        self, attempt: int, members: Sequence[Member], history: History, config: PeersConfig, pace: float = 0.0
    ) -> None:
        self.attempt, self._members, self._history, self._config = attempt, tuple(members), history, config
        self._pace = pace
        self.committed: Copy | None = None
        self.without: dict[int, float] = {}
        self._told: set[int] = set()
        self._held: dict[int, set[_Held]] = {}
        self._round: _Round | None = None
        self._rounds = 0
        self._failures, self._not_before = 0, -math.inf
        self._blamed: list[int] = []
        self._regroup()
        self._committed_in = self.groups

    def _regroup(self) -> None:
        self.groups = groups_of(self._members, self._config, self.without)
        self._codewords = rank_groups(self.groups, self._members)

    # --- members

    def joined(self, index: int) -> list[Order]:
        """What a member that (re)connects has to know. What it holds it will say anew."""
        self._forget(index)
        orders = [self._commitment(self.committed)] if self.committed else []
        return [*orders, self._replicate(self._round)] if self._round else orders

    def left(self, index: int) -> None:
        """A member's connection is gone."""
        self._forget(index)

    def _forget(self, index: int) -> None:
        self._told.discard(index)
        member = next(m for m in self._members if m.index == index)
        for rank in range(member.first_rank, member.first_rank + member.processes):
            self._held.pop(rank, None)

    def told(self, index: int) -> None:
        """A member has said all that it holds."""
        self._told.add(index)

    def holds(self, index: int, message: Reached) -> None:
        """A rank's pod holds whole parity of a step.

        Believed is what a member tells on joining, unless it was sent an order that makes it give that up; later only the
        answer to the present order.
        """
        answer = self._answers(message)
        telling = index not in self._told and (self._round is None or message.copy in (self._round.copy, self.committed))
        if answer or telling:
            self._held.setdefault(message.rank, set()).add((message.copy, message.group, message.parity))

    def _answers(self, message: Reached) -> bool:
        """The number is not enough: an earlier coordinator of this attempt counted from 1 too."""
        return self._round is not None and (self._round.number, self._round.copy) == (message.round, message.copy)

    def failed(self, message: Reached, now: float) -> list[Order]:
        """A rank's pod could not make parity in this round: it is given up, and another one begun later."""
        if not self._answers(message):
            return []
        orders = self._release(now)
        self._blame(message.blame, now)
        return orders

    def _blame(self, index: int, now: float) -> None:
        self._blamed = [*self._blamed, index] if index in self._blamed[-1:] else [index]
        if index >= 0 and len(self._blamed) >= BLAMES:
            self.without[index] = now + AMNESTY_SECONDS
            self._blamed, self._not_before, self._failures = [], -math.inf, 0
            self._regroup()

    @property
    def kept(self) -> set[Copy]:
        """The copies whose slots all members keep."""
        return {c for c in (self.committed, self._round.copy if self._round else None) if c is not None}

    # --- decisions

    def advance(self, newest: Copy | None, now: float) -> list[Order]:
        """Commit what all hold, give up what waits in vain, begin what is due. `newest` is committed in memory."""
        if not self._config.parity or len(self._members) == 1:
            return []
        return [*self._commit(), *self._give_up(now), *self._begin(newest, now)]

    def _commit(self) -> list[Order]:
        """A step that all hold, newer than the committed one; or the same one, if it was to be grouped anew."""
        known = {held[0] for of_rank in self._held.values() for held in of_rank}
        whole = max((c for c in known if self._is_news(c) and self._is_whole(c)), default=None)
        if whole is None:
            return []
        self.committed, self._committed_in = whole, self.groups
        if self._round is not None and self._round.copy.step <= whole.step:
            self._not_before = self._round.started + self._pace
            self._round, self._failures, self._blamed = None, 0, []
        self._keep_only({whole, *([self._round.copy] if self._round else [])})
        return [self._commitment(whole)]

    def _is_news(self, copy: Copy) -> bool:
        again = self._round is not None and self._round.copy == copy
        newer = self.committed is None or copy.step > self.committed.step
        return is_valid(copy, self._history) and (newer or again)

    def _is_whole(self, copy: Copy) -> bool:
        held = self._codewords.items()
        return bool(held) and all((copy, group, parity) in self._held.get(rank, ()) for rank, (group, parity) in held)

    def _keep_only(self, copies: set[Copy]) -> None:
        self._held = {rank: {h for h in held if h[0] in copies} for rank, held in self._held.items()}

    def _give_up(self, now: float) -> list[Order]:
        """A round that never ends. One that waits for a member that is away does not: see the module."""
        if self._round is None or now - self._round.started <= ROUND_SECONDS:
            return []
        done = self._done(self._round.copy)
        culprit = suspect(self.groups, done)
        orders = self._release(now, f"it was not done within {ROUND_SECONDS:.0f} s: {self._words(done)} did not finish")
        self._blame(culprit, now)
        return orders

    def _done(self, copy: Copy) -> set[int]:
        """The pods all of whose ranks hold their parity."""
        whole = {rank for rank, codeword in self._codewords.items() if (copy, *codeword) in self._held.get(rank, ())}
        open_ranks = self._codewords.keys() - whole
        return {m.index for m in self._members if open_ranks.isdisjoint(range(m.first_rank, m.first_rank + m.processes))}

    def _words(self, done: Collection[int]) -> str:
        missing = sorted(i for group in self.groups for i in group.members if i not in done)
        return f"pod{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"

    def _release(self, now: float, reason: str = "") -> list[Order]:
        assert self._round is not None
        ended, self._round = self._round, None
        self._keep_only({self.committed} if self.committed else set())
        self._not_before = now + min(_BACKOFF[0] * 2.0**self._failures, _BACKOFF[1])
        self._failures += 1
        return [self._order("release", ended.copy, ended.number, reason)]

    def _begin(self, newest: Copy | None, now: float) -> list[Order]:
        if self._round is not None or newest is None or now < self._not_before or not self._may_begin():
            return []
        self._forgive(now)
        done = self.committed is not None and newest.step <= self.committed.step and self._is_whole(self.committed)
        if done or not self._codewords:
            return []
        self._rounds = max(self._rounds + 1, int(now * 1000))  # higher than those of an earlier coordinator in this pod
        self._round = _Round(self._rounds, newest, now)
        self._keep_only({newest, *([self.committed] if self.committed else [])})
        return [*self._commit(), *([self._replicate(self._round)] if self._round else [])]

    def _may_begin(self) -> bool:
        """Everybody is there, and has told what it holds: an earlier coordinator may have committed something."""
        return self._told == {m.index for m in self._members}

    def _forgive(self, now: float) -> None:
        kept = {i: until for i, until in self.without.items() if now < until}
        if kept != self.without:
            self.without = kept
            self._regroup()

    # --- orders

    def _commitment(self, copy: Copy) -> Order:
        """In the groups that it was made for: others may be working on the next one by now."""
        return Order("committed", self.attempt, PEERS, copy, groups=self._committed_in)

    def _replicate(self, round_: _Round) -> Order:
        return self._order("replicate", round_.copy, round_.number)

    def _order(self, kind: str, copy: Copy, number: int, reason: str = "") -> Order:
        return Order(kind, self.attempt, PEERS, copy, groups=self.groups, round=number, reason=reason)
