"""The figure of the trainer's own memory."""

from __future__ import annotations

from ..context import GIB, MIB, Context
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..rounds import Pair, Plan, Sample, Series, side_by_side
from ..stats import median
from ..systems import title

_PEERS = ("none", "torch-save", "dcp", "dcp-shm", "torchsnapshot", "dlrover")


def _sample(worker: Worker) -> Sample:
    answer = worker.ask("sample")
    return {"grown": answer["grown"]}


def trainer_overhead(context: Context) -> Outcome:
    """Growth of the process with a snapshot after every step, less the growth of one that runs the same steps without."""
    plan = Plan("memory", {"nbytes": context.sized(GIB)}, _sample, context.samples)
    peers = _PEERS if context.peers else _PEERS[:1]
    mine, pairs = side_by_side(plan, "holdfast-lazy", peers)
    control = pairs[0].peer
    if control.problem:
        raise RuntimeError(f"the process without snapshots could not be measured: {control.problem}")
    without = control.median("grown")
    samples = _mib(mine, without)
    value = median(samples)
    others = {p.peer.name: median(_mib(p.peer, without)) for p in pairs[1:] if not p.peer.problem}
    figure = Figure(value, "MiB", "<= 64 MiB", value <= 64.0, min(others.values(), default=None), 0.0, samples)
    rows = [Row("1 GiB", title(mine.name), "MiB", value, note="private dirty pages and page tables, shared memory left out")]
    return Outcome(figure, [*rows, *(_row(p, value, others) for p in pairs[1:])], {"without_mib": without / MIB})


def _mib(series: Series, without: float) -> list[float]:
    return [(grown - without) / MIB for grown in series.all("grown")]


def _row(pair: Pair, value: float, others: dict[str, float]) -> Row:
    name = pair.peer.name
    if pair.peer.problem:
        return Row("1 GiB", title(name), "MiB", note=pair.peer.problem)
    return Row("1 GiB", title(name), "MiB", value, others[name], 0.0, value / others[name] if others[name] > 0 else None)
