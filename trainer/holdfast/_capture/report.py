"""What captures cost, for people and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptureReport:
    """Of this process so far. "Last" is the newest snapshot that was sealed; times in seconds.

    `mode` is "sync" (copied inside snapshot()) or "lazy" (behind the next step), `reason` says why. `bytes_copied` is smaller
    than `state_bytes` by what is frozen and was copied before. `return_seconds` is the time inside the last snapshot(), of it
    `plan_seconds` to find out what is to be copied; `capture_seconds` is copy and checksum, wherever they ran.
    `fence_seconds` is what optimizer steps waited for copies so far, in `fence_waits` steps.
    """

    mode: str = ""
    threads: int = 0
    chunk_bytes: int = 0
    reason: str = ""
    snapshots: int = 0
    skipped: int = 0
    bytes_copied: int = 0
    state_bytes: int = 0
    plan_seconds: float = 0.0
    return_seconds: float = 0.0
    capture_seconds: float = 0.0
    fence_seconds: float = 0.0
    fence_waits: int = 0


@dataclass(frozen=True)
class SealStats:
    """The cost of one snapshot: seconds in snapshot() and later at fences, of copy and checksum; bytes copied; mode, why."""

    stall_seconds: float = 0.0
    fence_seconds: float = 0.0
    capture_seconds: float = 0.0
    copied: int = -1
    mode: str = ""
