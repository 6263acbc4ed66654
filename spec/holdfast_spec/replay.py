"""Traces of real runs against the promises: what sidecars did, line by line, as `holdfast_sidecar.trace` writes it.

    {"t": seconds, "pod": name, "index": its index, "attempt": n, "what": ..., ...}

    prepare   level, step, of, levels    this attempt resumes from step `of` attempt `of` (level "": from scratch)
    prepared  level, step, of            every rank of this pod has it
    failed    level, step, of, rank      could not be had
    sealed    rank, step, of             a snapshot was published in memory
    holds     rank, step, of, group, parity, round     whole parity, of these ranks
    decided   order, level, step, of, round [groups]   the coordinator's word; `groups` of pods, if it is about peers
    obeyed    order, level, step, of, round            heard by a member
    kept      protected, pending         steps that the writer may not overwrite
    dark      lost                       these pods lost power by now: the last lines that they wrote may be missing

Lines may stand in any log, behind the word `trace `; other lines are left out. The order is that of time, so all pods must have
the same clock, as they have on one machine. Rules are the real ones: `timeline` tells what is valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_core.messages import MEMORY, PEERS
from holdfast_core.timeline import Copy, History, Resume, extend, is_valid

_MARK = "trace {"
_TAIL, _ON_ITS_WAY = 2, 2.0  # steps that a log without its end may lack; seconds until what its pod said has been acted on
Event = dict[str, Any]
_Kind = tuple[tuple[int, ...], int]


def check_files(files: Iterable[Path]) -> list[str]:
    """Broken promises of one run; each file is the log of a pod, or of several."""
    return check(event for file in files for event in events(file.read_text(errors="replace").splitlines()))


def events(lines: Iterable[str]) -> Iterator[Event]:
    """The lines of a log that are part of the trace."""
    for line in lines:
        text = line[line.find(_MARK) + len(_MARK) - 1 :] if _MARK in line else line.strip()
        if not text.startswith('{"t"'):
            continue
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # the last line of a pod that died


def check(trace: Iterable[Event]) -> list[str]:
    """Broken promises, in words, in order of time."""
    found = _Run()
    told = sorted(trace, key=lambda event: event["t"])
    found.world = frozenset(e["rank"] for e in told if e["what"] in ("sealed", "holds"))
    found.cuts = [_cut(told, pod, e["t"]) for e in told if e["what"] == "dark" for pod in e["lost"]]
    for event in told:
        found.see(event)
    return found.problems


@dataclass(frozen=True)
class _Cut:
    """The end of a log that its node took along: between these times its ranks may have sealed steps up to this one."""

    ranks: frozenset[int]
    since: float
    until: float
    step: int


def _cut(told: Iterable[Event], pod: str, at: float) -> _Cut:
    lines = [e for e in told if e["pod"] == pod and e["t"] <= at]
    sealed = [e for e in lines if e["what"] == "sealed"]
    ranks, newest = frozenset(e["rank"] for e in sealed), max((e["step"] for e in sealed), default=-1)
    return _Cut(ranks, max((e["t"] for e in lines), default=at), at + _ON_ITS_WAY, newest + _TAIL)


@dataclass
class _Attempt:
    """What is known of one: whence it resumes, and which pods it has by index."""

    source: tuple[str, Copy]
    pods: dict[int, str] = field(default_factory=dict)
    coordinator: str = ""


@dataclass
class _Run:
    """A run as it unfolds."""

    world: frozenset[int] = frozenset()
    problems: list[str] = field(default_factory=list)
    history: History = ()
    attempts: dict[int, _Attempt] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, set[int]] = field(default_factory=dict)
    sealed: dict[Copy, set[int]] = field(default_factory=dict)
    holds: dict[Copy, set[tuple[int, _Kind]]] = field(default_factory=dict)
    committed: dict[str, Copy] = field(default_factory=dict)
    rejected: set[Copy] = field(default_factory=set)
    doubted: set[tuple[Copy, int]] = field(default_factory=set)  # with the rank that asked
    kinds: frozenset[_Kind] = frozenset()
    first: int = 0
    cuts: list[_Cut] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """One line."""
        self._grows(event)
        act = {
            "prepare": self._prepare, "prepared": self._prepared, "failed": self._failed, "sealed": self._sealed,
            "holds": self._holds, "decided": self._decided,
        }.get(event["what"])  # fmt: skip
        if act is not None:
            act(event)

    def _complain(self, event: Event, promise: str, text: str) -> None:
        self.problems.append(f"{event['t']:.3f} pod {event['pod']}, attempt {event['attempt']}: {promise}: {text}")

    def _grows(self, event: Event) -> None:
        before = self.reached.get(event["pod"], 0)
        if event["attempt"] < before:
            self._complain(event, "I4", f"a word ({event['what']}) of attempt {event['attempt']} after attempt {before}")
        self.reached[event["pod"]] = max(before, event["attempt"])

    # --- attempts

    def _prepare(self, event: Event) -> None:
        number, source = event["attempt"], (event["level"], _copy(event))
        if number not in self.attempts:
            self._begins(event, source)
        attempt = self.attempts[number]
        if attempt.source != source:
            self._complain(event, "I3", f"resumes from {_words(*source)}, others from {_words(*attempt.source)}")
        attempt.pods[event["index"]] = event["pod"]

    def _begins(self, event: Event, source: tuple[str, Copy]) -> None:
        number, (level, copy) = event["attempt"], source
        self.first = self.first or number
        if level and not is_valid(copy, self.history):
            self._complain(event, "I4", f"resumes from {_words(*source)}, which a later attempt abandoned")
        if level in (MEMORY, PEERS) and copy.attempt >= self.first and not self._by_all(copy):
            self._complain(event, "I3", f"resumes from {_words(*source)}, which not every rank has sealed")
        if number < max(self.attempts, default=0):
            self._complain(event, "I4", "begins after a later attempt")
        self.attempts[number] = _Attempt(source)
        self.history = extend(self.history, Resume(number, copy.step))
        self.committed = {name: c for name, c in self.committed.items() if is_valid(c, self.history) or self._keeps(name, c)}

    def _keeps(self, level: str, copy: Copy) -> bool:
        """A promise of the level: looked at again when all pods of the new attempt are known."""
        return level in (MEMORY, PEERS)

    def _prepared(self, event: Event) -> None:
        if event["level"]:
            self.sealed.setdefault(_copy(event), set()).update(self.ranks.get(event["index"], ()))
        attempt = self.attempts.get(event["attempt"])
        if attempt is not None:
            self._promise_kept(event, attempt)

    def _promise_kept(self, event: Event, attempt: _Attempt) -> None:
        """I1, once the last pod of an attempt is prepared: who was lost since the attempt before?"""
        before = self.attempts.get(max((n for n in self.attempts if n < event["attempt"]), default=0))
        if before is None or attempt.pods.keys() != before.pods.keys():
            return
        lost = {i for i, pod in attempt.pods.items() if before.pods[i] != pod}
        step = attempt.source[1].step
        memory, peers = self.committed.get(MEMORY), self.committed.get(PEERS)
        for level, copy, bearable in ((MEMORY, memory, not lost), (PEERS, peers, self._bearable(lost))):
            if copy is not None and bearable and copy not in self.rejected and step < copy.step:
                self._complain(
                    event, "I1", f"{_words(level, copy)} was committed, with {len(lost)} pods lost step {step} is resumed"
                )
                self.committed.pop(level)

    def _bearable(self, lost: set[int]) -> bool:
        gone = {r for i in lost for r in self.ranks.get(i, ())}
        covered = {r for group, _ in self.kinds for r in group}
        return gone <= covered and all(len(gone & set(group)) <= parity for group, parity in self.kinds)

    def _failed(self, event: Event) -> None:
        """Who is out of reach for a moment is asked again; after that another level has its turn."""
        seen = (_copy(event), event["rank"])
        if not event.get("passing") or seen in self.doubted:
            self.rejected.add(_copy(event))
        self.doubted.add(seen)

    # --- steps

    def _sealed(self, event: Event) -> None:
        self.ranks.setdefault(event["index"], set()).add(event["rank"])
        if event["of"] > event["attempt"]:
            self._complain(event, "I4", f"rank {event['rank']} sealed a step of attempt {event['of']}, which is to come")
        self.sealed.setdefault(_copy(event), set()).add(event["rank"])

    def _holds(self, event: Event) -> None:
        self.ranks.setdefault(event["index"], set()).add(event["rank"])
        kind = (tuple(event["group"]), event["parity"])
        self.holds.setdefault(_copy(event), set()).add((event["rank"], kind))

    def _by_all(self, copy: Copy) -> bool:
        return bool(self.world) and self.world <= self.sealed.get(copy, set())

    def _decided(self, event: Event) -> None:
        attempt = self.attempts.get(event["attempt"])
        if attempt is not None:
            attempt.coordinator = attempt.coordinator or event["pod"]
            if attempt.coordinator != event["pod"]:
                self._complain(event, "I4", f"it decides, and so does pod {attempt.coordinator}")
        if event["order"] == "committed":
            self._commit(event, event["level"], _copy(event))

    def _commit(self, event: Event, level: str, copy: Copy) -> None:
        if not is_valid(copy, tuple(r for r in self.history if r.attempt <= event["attempt"])):
            self._complain(event, "I4", f"{_words(level, copy)} is committed, though a later attempt abandoned it")
        self.sealed.setdefault(copy, set()).update(self._unheard(event, copy))
        if level != PEERS and copy.attempt >= self.first and not self._by_all(copy):
            missing = sorted(self.world - self.sealed.get(copy, set()))
            self._complain(event, "I3", f"{_words(level, copy)} is committed before ranks {missing} sealed it")
        if level == PEERS:
            self._protected(event, copy)
        before = self.committed.get(level)
        falls = before is not None and copy.step < before.step and is_valid(before, self.history)
        if falls and before is not None and level != MEMORY and event["attempt"] == max(self.attempts, default=0):
            self._complain(event, "I1", f"{level} falls back from step {before.step} to {copy.step}")
        if event["attempt"] == max(self.attempts, default=event["attempt"]):
            self.committed[level] = copy

    def _protected(self, event: Event, copy: Copy) -> None:
        """Each rank's pod must have said that it holds the parity of its group."""
        held, unheard = self.holds.get(copy, set()), self._unheard(event, copy)
        groups = {kind for _, kind in held}
        whole = frozenset(kind for kind in groups if all((rank, kind) in held or rank in unheard for rank in kind[0]))
        covered = {rank for group, _ in whole for rank in group}
        wanted = self._wanted(event)
        if wanted - covered:
            missing = sorted(wanted - covered)
            self._complain(event, "I1", f"step {copy.step} is called protected before all of ranks {missing} hold their parity")
        self.kinds = whole

    def _unheard(self, event: Event, copy: Copy) -> set[int]:
        """Ranks whose word on this step may have been lost with the end of a log."""
        return {r for c in self.cuts if c.since <= event["t"] <= c.until and copy.step <= c.step for r in c.ranks}

    def _wanted(self, event: Event) -> frozenset[int]:
        """The ranks that a commit is about: those of the pods in its groups, if the line says which."""
        if "groups" not in event:
            return self.world
        pods = {i for group in event["groups"] for i in group}
        return frozenset(r for i in pods for r in self.ranks.get(i, ()))


def _copy(event: Event) -> Copy:
    return Copy(event["step"], event["of"])


def _words(level: str, copy: Copy) -> str:
    return f"step {copy.step} of attempt {copy.attempt} in {level}" if level else "nothing"
