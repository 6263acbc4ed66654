"""Figures of a state in 256 large tensors: the stall of a save, copying in the background, restoring."""

from __future__ import annotations

from ..context import GIB, Context
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..rounds import Pair, Plan, Sample, Series, apart, side_by_side
from ..stats import median, paired, rate
from ..systems import PEERS, by_name, title

_RESTORING = ("torch-save", "torch-mmap", "dcp", "torchsnapshot", "dlrover")
_COPYING = ("dcp-shm", "dlrover")
_MUST_BEAT = ("torch-save", "dcp")


def _stall(worker: Worker) -> Sample:
    bound = worker.ask("bound")["seconds"]
    return {"bound": bound, **worker.ask("save")}


def own_torch(name: str) -> bool:
    """Whether it ran with another torch than ours, so that only ratios to its own plain copy compare."""
    return by_name(name).environment.torch == "own"


def ratio(pair: Pair, key: str, bound: str = "bound") -> float:
    """Ours to peer, paired. With another torch: each relative to the plain copy in its own process."""
    if not own_torch(pair.peer.name):
        return paired(pair.ours.all(key), pair.peer.all(key))
    return paired(pair.ours.all(key), pair.ours.all(bound)) / paired(pair.peer.all(key), pair.peer.all(bound))


def note(series: Series) -> str:
    """What must be known about a peer's row."""
    if series.problem:
        return series.problem
    if own_torch(series.name):
        return f"torch {series.opened['torch']}; the ratio is of ratios to the plain copy in the same process"
    return ""


def _row(case: str, pair: Pair, key: str) -> Row:
    if pair.peer.problem:
        return Row(case, title(pair.peer.name), "ms", note=pair.peer.problem)
    held = pair.peer.median("changeable") - pair.peer.median("stall")
    words = [note(pair.peer), f"may not change the state for {1e3 * held:.0f} ms more" if held > 1e-3 else ""]
    figures = (1e3 * pair.ours.median(key), 1e3 * pair.peer.median(key), 1e3 * pair.peer.median("bound"))
    return Row(case, title(pair.peer.name), "ms", *figures, ratio(pair, key), "; ".join(w for w in words if w))


def snapshot_return(context: Context) -> Outcome:
    """How long a save holds the loop up."""
    opening = {"kind": "uniform", "nbytes": context.sized(GIB)}
    mine, pairs = side_by_side(Plan("tensors", opening, _stall, context.samples), "holdfast-lazy", context.only(PEERS))
    ran = [p for p in pairs if not p.peer.problem]
    best = min(ran, key=lambda p: p.peer.median("stall"), default=None)
    value = 1e3 * mine.median("stall")
    figure = Figure(
        value,
        "ms",
        "<= 2 ms, and <= 1/10 of the best peer's stall",
        holds=value <= 2.0 and best is not None and max(ratio(p, "stall") for p in ran) <= 0.1,
        peer=1e3 * best.peer.median("stall") if best else None,
        bound=1e3 * mine.median("bound"),
        samples=[1e3 * s for s in mine.all("stall")],
    )
    ours = Row(
        "1 GiB",
        title(mine.name),
        "ms",
        value,
        bound=figure.bound,
        ratio=mine.median("stall") / mine.median("bound"),
        note="to the bound",
    )
    rows = [ours, *(_row("1 GiB", pair, "stall") for pair in pairs), *_four_gib(context)]
    return Outcome(figure, rows, {"saved_ms": 1e3 * mine.median("saved"), "facts": mine.facts})


def _four_gib(context: Context) -> list[Row]:
    """The same four times as large: memory holds one system at a time, so each is compared with its own plain
    copy, and three samples are enough for rows that no claim rests on."""
    size = context.sized(4 * GIB)
    systems = ["holdfast-lazy", *context.only(PEERS)]
    need = {name: int(3.5 * size) for name in systems} | {"holdfast-lazy": 4 * size + GIB // 2}
    plan = Plan("tensors", {"kind": "uniform", "nbytes": size}, _stall, min(3, context.samples), warm_up=1)
    mine, *peers = apart(plan, systems, need)
    if mine.problem:
        return [Row("4 GiB", title(mine.name), "ms", note=mine.problem)]
    rows = [
        Row(
            "4 GiB",
            title(mine.name),
            "ms",
            1e3 * mine.median("stall"),
            bound=1e3 * mine.median("bound"),
            ratio=_to_bound(mine),
            note="to the bound",
        )
    ]
    return rows + [_large_row(mine, peer) for peer in peers]


def _to_bound(series: Series) -> float:
    return paired(series.all("stall"), series.all("bound"))


def _large_row(mine: Series, peer: Series) -> Row:
    if peer.problem:
        return Row("4 GiB", title(peer.name), "ms", note=peer.problem)
    words = "the ratio is of ratios to the plain copy in the same process"
    figures = (1e3 * mine.median("stall"), 1e3 * peer.median("stall"), 1e3 * peer.median("bound"))
    return Row("4 GiB", title(peer.name), "ms", *figures, _to_bound(mine) / _to_bound(peer), words)


def _capture(worker: Worker) -> Sample:
    bound = worker.ask("bound")["seconds"]
    answer = worker.ask("background" if worker.system.module == "holdfast" else "save")
    if worker.system.module != "holdfast":
        return {"bound": bound, "copy": answer["changeable"]}
    facts = worker.ask("facts")
    return {"bound": bound, "copy": facts["capture_seconds"], "bytes": facts["bytes_copied"]}


def capture_throughput(context: Context) -> Outcome:
    """Copy and checksum behind a main thread that sleeps, against a plain copy by as many threads."""
    size = context.sized(GIB)
    by_threads: dict[int, Series] = {}
    pairs: list[Pair] = []
    for threads in (1, 2):
        plan = Plan("tensors", {"kind": "uniform", "nbytes": size, "threads": threads}, _capture, context.samples, warm_up=4)
        by_threads[threads], found = side_by_side(
            plan, f"holdfast-lazy{threads}", context.only(_COPYING) if threads == 2 else ()
        )
        pairs += found
    ratios = {n: [b / c for b, c in zip(s.all("bound"), s.all("copy"), strict=True)] for n, s in by_threads.items()}
    worst = min(ratios, key=lambda n: median(ratios[n]))
    peers = [paired(p.peer.all("bound"), p.peer.all("copy")) for p in pairs if not p.peer.problem]
    value = median(ratios[worst])
    figure = Figure(value, "of a plain copy", ">= 0.9", value >= 0.9, max(peers, default=None), 1.0, ratios[worst])
    mine = [
        Row(
            f"1 GiB, {n} thread{'s' * (n > 1)}",
            "Holdfast (lazy)",
            "GB/s",
            rate(size, s.median("copy")),
            None,
            rate(size, s.median("bound")),
            median(ratios[n]),
            "to the bound",
        )
        for n, s in by_threads.items()
    ]
    return Outcome(figure, [*mine, *(_rate_row("1 GiB", size, p, "copy", "bound") for p in pairs)])


def _rate_row(case: str, size: int, pair: Pair, key: str, bound: str) -> Row:
    peer = pair.peer
    if peer.problem:
        return Row(case, title(peer.name), "GB/s", note=peer.problem)
    figures = (rate(size, pair.ours.median(key)), rate(size, peer.median(key)), rate(size, peer.median(bound)))
    return Row(case, title(peer.name), "GB/s", *figures, 1.0 / ratio(pair, key, bound), note(peer))


def _restore(worker: Worker) -> Sample:
    """Ours in a new process each time, as after a crash; peers where they saved, with their files in the page cache."""
    if worker.system.module == "holdfast":
        return worker.ask("restart")
    bound = worker.ask("bound_out")["seconds"]
    return {"bound": bound, **worker.ask("restore")}


def restore_throughput(context: Context) -> Outcome:
    """Back into the live tensors, verified."""
    size = context.sized(GIB)
    plan = Plan(
        "tensors", {"kind": "uniform", "nbytes": size, "whole": True}, _restore, context.samples, first=("save", "save", "save")
    )
    mine, pairs = side_by_side(plan, "holdfast", context.only(_RESTORING))
    ratios = [b / r for b, r in zip(mine.all("bound"), mine.all("restore"), strict=True)]
    faster = {p.peer.name: 1.0 / ratio(p, "restore") for p in pairs if not p.peer.problem}
    beaten = all(faster.get(name, 0.0) >= 5.0 for name in _MUST_BEAT)
    value = median(ratios)
    peers = [
        paired(p.peer.all("bound"), p.peer.all("restore")) for p in pairs if p.peer.name in _MUST_BEAT and not p.peer.problem
    ]
    target = ">= 0.8; >= 5 x torch.load and dcp.load"
    figure = Figure(value, "of a plain copy", target, value >= 0.8 and beaten, max(peers, default=None), 1.0, ratios)
    ours = Row(
        "1 GiB",
        "Holdfast",
        "GB/s",
        rate(size, mine.median("restore")),
        None,
        rate(size, mine.median("bound")),
        value,
        "to the bound",
    )
    rows = [ours, *(_rate_row("1 GiB", size, p, "restore", "bound") for p in pairs)]
    return Outcome(figure, rows, {"times_faster": faster})
