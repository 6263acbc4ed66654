"""DTensors (FSDP2, tensor parallelism): what a rank stores of one is its local shard, and where that lies in the whole.

The shard is a leaf like any other; its `Layout` stands in the state tree and its place in the manifest. It is put back only
into the same layout: same mesh, same placements, same coordinate of this rank. Neighbours: `codec` writes layouts, `placing`
reads them.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from holdfast_core.manifest import CorruptShard

from ..errors import StateMismatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

_MODULE = "torch.distributed.tensor"


@dataclass(frozen=True)
class Layout:
    """How a tensor of `shape` and `stride` is spread over a mesh, and which part of it this rank holds.

    `placements` has torch's short names, one for each mesh dimension: R, S(0), P(sum), _S(0, 2).
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    mesh: tuple[int, ...]
    coordinate: tuple[int, ...]
    placements: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For the state tree."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """The inverse; raises CorruptShard."""
        try:
            numbers = {name: tuple(map(int, value[name])) for name in ("shape", "stride", "mesh", "coordinate")}
            return cls(**numbers, placements=tuple(map(str, value["placements"])))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptShard(f"bad layout of a sharded tensor: {error}") from error


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. Whoever holds one has imported its package: nobody else pays for that."""
    package = sys.modules.get(_MODULE)
    return package is not None and isinstance(value, package.DTensor)


def local_part(value: torch.Tensor) -> torch.Tensor:
    """The memory that this rank holds of a tensor: of a DTensor its shard, otherwise the tensor itself."""
    if not is_sharded(value):
        return value
    with torch.no_grad():
        return value.to_local().detach()


def layout_of(value: DTensor) -> Layout:
    """How it is spread. A rank outside of the mesh has no coordinate, and no bytes."""
    return _layout(tuple(value.shape), value.stride(), value.device_mesh, value.placements)[0]


def global_offset(value: DTensor) -> tuple[int, ...]:
    """Where the local shard starts in the whole tensor, one index for each dimension."""
    return _layout(tuple(value.shape), value.stride(), value.device_mesh, value.placements)[1]


@lru_cache(maxsize=1 << 16)  # in all, a few microseconds a tensor in each snapshot instead of a hundred
def _layout(
    shape: tuple[int, ...], stride: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Placement, ...]
) -> tuple[Layout, tuple[int, ...]]:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    offset = tuple(compute_local_shape_and_global_offset(shape, mesh, placements)[1])
    layout = Layout(shape, stride, tuple(mesh.shape), tuple(mesh.get_coordinate() or ()), tuple(map(str, placements)))
    return layout, offset or (0,) * len(shape)


def check_layout(live: torch.Tensor, saved: Layout | None) -> None:
    """Raises StateMismatch unless a shard of the saved layout is exactly what the live tensor holds on this rank."""
    if saved is None and not is_sharded(live):
        return
    now = layout_of(live) if is_sharded(live) else None
    if now != saved:
        raise StateMismatch(
            f"the snapshot has {_describe(saved)}, the live tensor is {_describe(now)}; resharding isn't there yet: "
            "run with the world size and the mesh that the snapshot was made with"
        )


def rebuild(local: torch.Tensor, saved: Layout, like: torch.Tensor | None) -> torch.Tensor:
    """A DTensor of a restored shard, on the mesh of `like`; raises StateMismatch if there is none that fits."""
    if not is_sharded(like):
        raise StateMismatch(f"the snapshot has {_describe(saved)}, and no live DTensor tells which mesh it belongs to")
    from torch.distributed.tensor import DTensor

    known = {str(p): p for p in like.placements}
    placements = [_placement(name, known) for name in saved.placements]
    result: torch.Tensor = DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=torch.Size(saved.shape), stride=saved.stride
    )
    check_layout(result, saved)
    return result


def _placement(name: str, known: dict[str, Placement]) -> Placement:
    from torch.distributed.tensor import Replicate, Shard

    if name in known:
        return known[name]
    if name == "R":
        return Replicate()
    if name.startswith("S(") and name[2:-1].isdigit():
        return Shard(int(name[2:-1]))
    raise StateMismatch(f"placement {name} of a tensor in the snapshot is not one that its parameter has")


def _describe(layout: Layout | None) -> str:
    if layout is None:
        return "a tensor that is not sharded"
    return (
        f"{list(layout.shape)} as {', '.join(layout.placements)} over a mesh of {list(layout.mesh)}, "
        f"part {list(layout.coordinate)}"
    )
