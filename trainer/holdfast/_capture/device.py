"""Capture from CUDA devices: the copy engine moves the tensors into the slot behind forward and backward.

The arena is registered as pinned memory, copies go to a side stream, and fences are events: the training stream waits for them
on the device, the host never does. Only the copy thread waits for the last event, and then sums up what has arrived. Nothing
synchronises a whole device.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from holdfast_core.checksum import CHUNK
from holdfast_core.fastcopy import Batch

from .._log import note
from .._state.codec import dtype_of
from .._state.mapping import Mapped
from .lane import changed

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of this process


class DeviceLane:
    """The device tensors that one fence guards. The order of calls: `start`, then `fence` or `arrived`, in any order."""

    def __init__(self, items: Sequence[Any], sums: array[int]) -> None:
        self.items = items
        self.nbytes = sum(i.entry.nbytes for i in items)
        work, places = [], []
        for item in items:
            for number, at in enumerate(range(0, item.entry.nbytes, CHUNK)):
                work.append((item.entry.offset + at, 0, min(CHUNK, item.entry.nbytes - at)))
                places.append(item.first_sum + number)
        self.batch = Batch(work, sums, places)
        self.problem = ""
        self.untrusted = -1  # index of the item that was changed between `start` and its fence
        self._versions: list[int] = []
        self._checked = True
        self._lock = threading.Lock()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._events: dict[torch.device, torch.cuda.Event] = {}

    def start(self, area: torch.Tensor) -> None:
        """Put the copies behind what the training streams have been given so far. Returns at once."""
        self.batch.reset()
        self._versions, self._checked = [i.leaf._version for i in self.items], False
        self.problem, self.untrusted = "", -1
        for device in {i.leaf.device for i in self.items}:
            side = self._stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side), torch.no_grad():
                for item in (i for i in self.items if i.leaf.device == device and i.entry.nbytes):
                    self._copy(item, area, side)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(side)
            self._events[device] = event

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    @staticmethod
    def _copy(item: Any, area: torch.Tensor, side: torch.cuda.Stream) -> None:
        entry = item.entry
        target = area[entry.offset : entry.offset + entry.nbytes].view(dtype_of(entry.dtype)).view(entry.shape)
        source = item.leaf.contiguous()  # on the side stream
        target.copy_(source, non_blocking=True)
        source.record_stream(side)

    def fence(self) -> None:
        """What the training streams are given from here on runs after the copies. Does not wait."""
        self._check()
        for device, event in self._events.items():
            torch.cuda.current_stream(device).wait_event(event)

    def _check(self) -> None:
        """Whether somebody changed a tensor without a fence: then its copy may hold either value."""
        with self._lock:
            if self._checked:
                return
            self._checked = True
            for number, (item, before) in enumerate(zip(self.items, self._versions, strict=True)):
                if item.leaf._version != before:
                    self.untrusted, self.problem = number, changed(item.entry.key)
                    return

    def finish(self, area: torch.Tensor, stop: array[int]) -> None:
        """Wait for the copies (without the GIL) and sum up what has arrived."""
        for event in self._events.values():
            event.synchronize()
        self._check()
        self.batch.run(area.data_ptr(), stop)


class Pinned:
    """Registers an arena's memory with CUDA, once for each arena; without success copies still work, slower."""

    def __init__(self) -> None:
        self._mapped: Mapped | None = None
        self.problem = ""

    def register(self, mapped: Mapped) -> None:
        """Make this arena the pinned one."""
        if mapped is self._mapped:
            return
        self.release()
        self._mapped = mapped
        code = int(_cudart().cudaHostRegister(mapped.bytes.data_ptr(), mapped.bytes.numel(), _PORTABLE))
        self.problem = f"cudaHostRegister failed with code {code}" if code else ""
        if code:
            note(f"{self.problem}: snapshots of device tensors are copied through pageable memory, which is slower")

    def release(self) -> None:
        """Give the registration back."""
        if self._mapped is not None and not self.problem:
            _cudart().cudaHostUnregister(self._mapped.bytes.data_ptr())
        self._mapped = None


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class LateNumber:
    """A number on a device, fetched without waiting for it."""

    def __init__(self, value: torch.Tensor) -> None:
        self._host = torch.empty((), dtype=torch.float32, pin_memory=True)
        self._host.copy_(value.detach().reshape(()).float(), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(value.device))

    def get(self) -> float | None:
        """The number, or None while it is not there yet (or is no finite number)."""
        if not self._event.query():  # type: ignore[no-untyped-call]
            return None
        number = float(self._host)
        return number if math.isfinite(number) else None
