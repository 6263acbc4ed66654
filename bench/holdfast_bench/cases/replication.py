"""The figures of the peers' RAM: how fast a snapshot gets there, and how much memory that takes."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from holdfast_operator.certificates import issue

from ..context import GIB, Context
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..namespaces import cable
from ..progress import say
from ..stats import median, pair_ratios, rate

_TARGET = ">= 0.8 of a bare socket, and of a bare TLS socket"
_MEMBERS = 4
_WAYS = {"plain": "plain", "tls": "mTLS"}
_BARE = {"plain": "sendfile from shared memory, recv_into", "tls": "sendall of shared memory, recv_into"}
_SMALL = 4096  # bytes
_SLOTS = 3  # the protected step's, the one that is being protected, the one that is being written


def replication_throughput(context: Context) -> Outcome:
    """A pod pulls the other's image as its parity, in a group of two: verified by the sender and on arrival, and summed up."""
    size = context.sized(GIB)
    with cable() as ends, _pods([name for name, _ in ends], [host for _, host in ends], [size, _SMALL]) as (_, puller):
        measured = {way: _beside(puller, way, size, context.samples) for way in _WAYS}
    ratios = {way: pair_ratios(bare, ours) for way, (ours, bare) in measured.items()}
    worst = min(ratios, key=lambda way: median(ratios[way]))
    value = median(ratios[worst])
    figure = Figure(value, "of a bare socket", _TARGET, value >= 0.8, None, 1.0, ratios[worst])
    rows = [_row(way, size, *measured[way], median(ratios[way])) for way in _WAYS]
    cost = median(measured["tls"][0]) / median(measured["plain"][0])
    rows.append(Row("1 GiB", "mTLS, times as long as plain", "x", cost, note="one connection, one processor on each side"))
    return Outcome(figure, rows, {"tls_times_as_long": cost})


def parity_memory(context: Context) -> Outcome:
    """Four pods take snapshots and protect each step while they take the next: what lies in shared memory beside the slots."""
    size = context.sized(GIB // 2)
    share = 1 / (_MEMBERS - 1)
    with _pods([""] * _MEMBERS, ["127.0.0.1"] * _MEMBERS, [size] * _MEMBERS, slots=_SLOTS) as pods:
        at_rest = _protect_steps(pods)
        found = [pod.ask("memory", way="plain") for pod in pods]
    fractions = [memory["parity"] / size for memory in found]
    value = max(fractions)
    target = f"<= 1/(g-1) of a snapshot + 5% ({share + 0.05:.3f})"
    figure = Figure(value, "of a snapshot", target, value <= share + 0.05, None, share, fractions)
    slots = median([memory["arenas"] / size for memory in found])
    details = {"slots_needed": _SLOTS, "of_a_snapshot": {"slots": slots, "both": value, "one": value / 2}, "whole": at_rest}
    note = "two buffers of 1/(g-1): the protected step's parity stays until the next one's is whole in the whole group"
    return Outcome(
        figure, [Row("512 MiB, group of 4", "Holdfast: beside the slots", "snapshots", value, bound=share, note=note)], details
    )


def _protect_steps(pods: list[Worker]) -> int:
    """Steps 1 to 4, each sealed by all before it is protected by all; how many parities a pod has whole in the end."""
    for step in range(1, 5):
        for pod in pods:
            if step > 1:
                pod.ask("seal", step=step)
            pod.ask("keep", way="plain", steps=[max(1, step - 1), step])
        for pod in pods:
            pod.ask("encode", way="plain", step=step)
    return int(min(pod.ask("memory", way="plain")["whole"] for pod in pods))


def _beside(puller: Worker, way: str, size: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of the bare socket, in turns."""
    say(f"  {_WAYS[way]}")
    ours, bare = [], []
    for number in range(rounds + 1):
        mine, bound = puller.ask("encode", way=way), puller.ask("bare", way=way, source=0, nbytes=size)
        if number:  # the first one warms up
            ours.append(mine["seconds"])
            bare.append(bound["seconds"])
    return ours, bare


def _row(way: str, size: int, ours: list[float], bare: list[float], ratio: float) -> Row:
    figures = (rate(size, median(ours)), None, rate(size, median(bare)), ratio)
    return Row("1 GiB, two network namespaces", f"Holdfast, {_WAYS[way]}", "GB/s", *figures, f"to the bound: {_BARE[way]}")


@contextmanager
def _pods(namespaces: list[str], hosts: list[str], sizes: list[int], slots: int = 1) -> Iterator[list[Worker]]:
    certificates = issue("bench", datetime.datetime.now(datetime.UTC))
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("none", "replication")) for _ in hosts]
        for index, (worker, namespace) in enumerate(zip(workers, namespaces, strict=True)):
            opening: dict[str, Any] = {
                "namespace": namespace,
                "hosts": hosts,
                "sizes": sizes,
                "certificates": certificates,
                "slots": slots,
            }
            worker.ask("open", index=index, **opening)
        yield workers
