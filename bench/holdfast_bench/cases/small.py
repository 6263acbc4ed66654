"""Figures of many small tensors, and of a state that is mostly frozen."""

from __future__ import annotations

from ..context import Context
from ..link import Worker
from ..model import Figure, Outcome, Row
from ..rounds import Pair, Plan, Sample, side_by_side
from ..stats import median, paired
from ..systems import PEERS, title
from .tensors import note, ratio

_PARAMETERS = 2500


def _sample(worker: Worker) -> Sample:
    bound = worker.ask("bound")["seconds"]
    if worker.system.module != "holdfast":
        return {"bound": bound, **worker.ask("save")}
    answer = worker.ask("background")
    facts = worker.ask("facts")
    return {"bound": bound, **answer, "plan": facts["plan_seconds"], "capture": facts["capture_seconds"]}


def many_small(context: Context) -> Outcome:
    """10,000 tensors of 1 to 16 KiB (and a step counter for each parameter): planning, and copying one by one."""
    opening = {"kind": "small", "threads": 1, "parameters": max(64, int(_PARAMETERS * context.scale))}
    mine, pairs = side_by_side(
        Plan("tensors", opening, _sample, context.samples, warm_up=3), "holdfast-lazy1", context.only(PEERS)
    )
    capture = paired(mine.all("bound"), mine.all("capture"))
    value = 1e3 * mine.median("plan")
    ran = [1e3 * p.peer.median("stall") for p in pairs if not p.peer.problem]
    figure = Figure(
        value,
        "ms",
        "plan <= 5 ms after the first, capture >= 0.5 of the plain copy",
        holds=value <= 5.0 and capture >= 0.5,
        peer=min(ran, default=None),
        bound=1e3 * mine.median("bound"),
        samples=[1e3 * s for s in mine.all("plan")],
    )
    case = f"{mine.opened['tensors']} tensors"
    rows = [
        Row(case, "Holdfast: plan", "ms", value),
        Row(case, "Holdfast: snapshot() returns", "ms", 1e3 * mine.median("stall")),
        Row(
            case,
            "Holdfast: capture",
            "ms",
            1e3 * mine.median("capture"),
            None,
            figure.bound,
            capture,
            "the plain copy's time to ours",
        ),
    ]
    return Outcome(figure, [*rows, *(_stall_row(case, p) for p in pairs)], {"capture_ratio": capture, "opened": mine.opened})


def _stall_row(case: str, pair: Pair) -> Row:
    peer = pair.peer
    if peer.problem:
        return Row(case, title(peer.name), "ms", note=peer.problem)
    figures = (1e3 * pair.ours.median("stall"), 1e3 * peer.median("stall"), 1e3 * peer.median("bound"))
    return Row(case, title(peer.name), "ms", *figures, ratio(pair, "stall"), "; ".join(w for w in ("stall", note(peer)) if w))


def _bytes(worker: Worker) -> Sample:
    worker.ask("save")
    return {"bytes": float(worker.ask("facts")["bytes_copied"])}


def lora_bytes(context: Context) -> Outcome:
    """Bytes copied for each snapshot of a state of which 99% is frozen, once every slot has the frozen part."""
    plan = Plan("tensors", {"kind": "lora"}, _bytes, context.samples, warm_up=5)
    mine, pairs = side_by_side(plan, "holdfast-lazy", context.only(("torch-save",)))
    trainable = float(mine.opened["trainable"])
    ratios = [b / trainable for b in mine.all("bytes")]
    peers = [p.peer.median("bytes") / trainable for p in pairs if not p.peer.problem]
    value = median(ratios)
    figure = Figure(value, "x the trainable bytes", "<= 1.05", value <= 1.05, min(peers, default=None), 1.0, ratios)
    case = f"LoRA-like, {mine.opened['nbytes'] / 1e6:.0f} MB, {trainable / 1e6:.1f} MB of them train"
    rows = [Row(case, "Holdfast", "MB", mine.median("bytes") / 1e6, None, trainable / 1e6, value, "to the bound")]
    rows += [_bytes_row(case, p, trainable) for p in pairs]
    return Outcome(figure, rows, {"facts": mine.facts})


def _bytes_row(case: str, pair: Pair, trainable: float) -> Row:
    if pair.peer.problem:
        return Row(case, title(pair.peer.name), "MB", note=pair.peer.problem)
    mine, peer = pair.ours.median("bytes"), pair.peer.median("bytes")
    return Row(case, title(pair.peer.name), "MB", mine / 1e6, peer / 1e6, trainable / 1e6, mine / peer)
