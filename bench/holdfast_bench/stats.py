"""Medians and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def median(values: Iterable[float]) -> float:
    """Raises ValueError when there are none."""
    return statistics.median(_some(values))


def maybe_median(values: Iterable[float]) -> float | None:
    """None when there are none."""
    found = list(values)
    return statistics.median(found) if found else None


def pair_ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """over[i] / under[i]: neighbours in time, so that a disturbance hits both or spoils one pair only."""
    if len(over) != len(under):
        raise ValueError(f"{len(over)} and {len(under)} samples do not pair")
    return [a / b for a, b in zip(over, under, strict=True)]


def paired(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the paired ratios."""
    return median(pair_ratios(over, under))


def rate(size: float, seconds: float) -> float:
    """GB/s; 0 for no time at all, which is nothing that was measured."""
    return size / seconds / 1e9 if seconds > 0 else 0.0


def _some(values: Iterable[float]) -> list[float]:
    found = list(values)
    if not found:
        raise ValueError("no samples")
    return found
