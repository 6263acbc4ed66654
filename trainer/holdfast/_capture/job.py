"""One snapshot under way: lanes to be worked off by whoever has time, then the seal that publishes the slot."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .._state.mapping import Mapped
from ..errors import SnapshotSkipped
from .device import DeviceLane
from .lane import Lane
from .slot import Content, Identity, Written, publish
from .team import Fork


@dataclass(frozen=True)
class Goal:
    """What the snapshot is of, and where it goes."""

    step: int
    who: Identity
    target: Mapped
    slot: int
    content: Content

    @property
    def area(self) -> torch.Tensor:
        """The slot's data area as uint8."""
        start = self.target.header.region(self.slot)
        return self.target.bytes[start : start + self.content.data_bytes]


_LEAVE_SECONDS = 30.0
_WORTH_A_TEAM = 1 << 20  # bytes


class Job:
    """`lanes` by fence are copied by `work` (any thread, several at once); the one that calls `complete` seals."""

    def __init__(
        self,
        goal: Goal,
        lanes: Mapping[int, Lane],
        device_lanes: Mapping[int, DeviceLane],
        held: Callable[[Lane], str] | None = None,
    ) -> None:
        self.goal, self.lanes, self.device_lanes = goal, lanes, device_lanes
        self.area = goal.area
        self.held = held  # debug mode: looks at a lane again before its tensors may change
        self.stop = array("I", [0])
        self.settled = threading.Event()
        self.problem = ""
        self.written: Written | None = None
        self.began = time.monotonic()
        self.seconds = 0.0  # from the first copy to the last
        self.fence_seconds = 0.0
        self.stall_seconds = 0.0
        self.copied = 0
        self.mode = ""
        self._delivery = threading.Lock()
        self._sealing = threading.Lock()
        self._gate = threading.Condition()
        self._inside = 0  # threads in `work`
        self.frozen: list[int] | None = None  # versions of what is frozen, at the time of its copy

    def claim_delivery(self) -> bool:
        """True for the one who is to tell the outcome."""
        return self._delivery.acquire(blocking=False)

    def work(self, fork: Fork | None = None) -> None:
        """Copy what is left. Does nothing once the snapshot is complete: its lanes may be in use for the next one."""
        with self._gate:
            if self.settled.is_set():
                return
            self._inside += 1
        try:
            self._copy(fork)
        finally:
            with self._gate:
                self._inside -= 1
                self._gate.notify_all()

    def _copy(self, fork: Fork | None) -> None:
        for lane in self.lanes.values():
            if not lane.settled:
                lane.work(self.area, self.stop, fork if lane.nbytes >= _WORTH_A_TEAM else None)

    def fence(self, fences: Iterable[int]) -> float:
        """Return when what these fences guard may change; the seconds that it took."""
        for fence in fences:
            if fence in self.device_lanes:
                self.device_lanes[fence].fence()
        open_lanes = [lane for fence in fences if (lane := self.lanes.get(fence)) is not None and not lane.settled]
        if not open_lanes:
            return 0.0
        start = time.monotonic()
        for lane in open_lanes:
            self._settle(lane)
        waited = time.monotonic() - start
        self.fence_seconds += waited
        return waited

    def _settle(self, lane: Lane) -> None:
        """Never raises: it runs within steps of the user's optimizers."""
        if lane.settled:
            return
        try:
            lane.settle(self.area, self.stop, self.held)
        except Exception as error:  # noqa: BLE001 - a failed save must never end training (promise I5)
            lane.problem, lane.settled = lane.problem or f"{type(error).__name__}: {error}", True

    def complete(self) -> None:
        """Finish every lane and seal the slot. Never raises; the outcome is in `written` or `problem`. May be called twice."""
        with self._sealing:
            if self.settled.is_set():
                return
            try:
                self._complete()
            except SnapshotSkipped as error:
                self.problem = str(error)
            except Exception as error:  # noqa: BLE001 - a failed save must never end training (promise I5)
                self.problem = f"{type(error).__name__}: {error}"
            finally:
                self._settled()

    def _settled(self) -> None:
        """From here on nobody works for this snapshot any more."""
        with self._gate:
            self.settled.set()
            if not self._gate.wait_for(lambda: not self._inside, _LEAVE_SECONDS):
                self.problem = self.problem or f"a copy thread did not finish within {_LEAVE_SECONDS:.0f} s"

    def _complete(self) -> None:
        self.fence_all()
        for device_lane in self.device_lanes.values():
            device_lane.finish(self.area, self.stop)
        self.seconds = time.monotonic() - self.began
        problem = "abandoned: the snapshot was given up" if self.stop[0] else self._changed()
        if problem:
            raise SnapshotSkipped(problem)
        goal = self.goal
        self.written = publish(goal.target, goal.slot, goal.who, goal.step, goal.content)

    def fence_all(self) -> None:
        """Finish every lane."""
        for lane in self.lanes.values():
            self._settle(lane)

    def _changed(self) -> str:
        return next((lane.problem for lane in self._both() if lane.problem), "")

    def _both(self) -> Iterable[Lane | DeviceLane]:
        return [*self.lanes.values(), *self.device_lanes.values()]

    def untrusted(self) -> Sequence[torch.Tensor]:
        """Tensors that were changed under the copy."""
        return [lane.items[lane.untrusted].leaf for lane in self._both() if lane.untrusted >= 0]
