"""The states that are saved: modules and optimizers made for the purpose, the same in every system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class State:
    """What a training script would give to a checkpointer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def parts(self) -> dict[str, Any]:
        """Name -> object with `state_dict()` and `load_state_dict()`."""
        return {"model": self.model, "optimizer": self.optimizer}

    def state_dict(self) -> dict[str, Any]:
        """Of all parts."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def tensors(self) -> list[torch.Tensor]:
        """Everything that a save must keep: parameters, buffers, the optimizer's states."""
        found = [*self.model.parameters(), *self.model.buffers()]
        for states in self.optimizer.state.values():
            found.extend(value for value in states.values() if isinstance(value, torch.Tensor))
        return [t.detach() for t in found]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(t.nbytes for t in self.tensors())

    def trainable_nbytes(self) -> int:
        """Of the parameters that train, and of their optimizer states."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        moments = [v for p in trainable for v in self.optimizer.state[p].values() if isinstance(v, torch.Tensor)]
        return sum(t.nbytes for t in [*trainable, *moments])

    def touch(self) -> None:
        """One step of the optimizer: everything that trains changes, in place."""
        gradients: dict[torch.Size, torch.Tensor] = {}
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = gradients.setdefault(parameter.shape, torch.full_like(parameter, 1e-3))
        self.optimizer.step()


def uniform(nbytes: int, count: int = 256) -> State:
    """`count` equal tensors of fp32: half of them parameters, half of them SGD's momentum."""
    each = max(1, nbytes // count // 4)
    model = nn.ParameterList([nn.Parameter(torch.rand(each)) for _ in range(count // 2)])
    return _stepped(State(model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, foreach=True)))


def small(parameters: int = 2500) -> State:
    """Parameters of 1 to 16 KiB with AdamW's two moments and step counter: 10,000 tensors, a quarter of them scalars."""
    sizes = torch.randint(256, 4097, (parameters,), generator=torch.Generator().manual_seed(1)).tolist()
    model = nn.ParameterList([nn.Parameter(torch.rand(size)) for size in sizes])
    return _stepped(State(model, torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)))


class LoRALinear(nn.Module):
    """A frozen weight with a low-rank update that trains."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.rand(width, width), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.rand(rank, width)), nn.Parameter(torch.zeros(width, rank))


def lora(layers: int = 16, width: int = 1792, rank: int = 9) -> State:
    """About 99% of the parameters are frozen: two matrices of rank 9 beside each of 1,792 x 1,792."""
    model = nn.ModuleList([LoRALinear(width, rank) for _ in range(layers)])
    trainable = [p for p in model.parameters() if p.requires_grad]
    return _stepped(State(model, torch.optim.AdamW(trainable, lr=1e-4, foreach=True)))


def _stepped(state: State) -> State:
    """With the optimizer's states in place, which appear at its first step."""
    state.touch()
    return state
