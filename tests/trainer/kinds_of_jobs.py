"""More of `kinds`: jobs that grow, change state by hand, or hold more than model and optimizer."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from trainer.kinds import Ckpt, Job, batch, fit, kind, loss_of, net, simple


class Growing(nn.Module):
    """Gets another block on the way; what is loaded says how many there must be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList()

    def grow(self) -> nn.Module:
        self.blocks.append(nn.Linear(self.width, self.width))
        return self.blocks[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


class Grown:
    """Model and optimizer of a Growing, with one state: groups must be there before an optimizer can load."""

    def __init__(self, width: int) -> None:
        self.model = Growing(width)
        self.optimizer = torch.optim.Adam([*self.model.first.parameters(), *self.model.last.parameters()], 0.01)

    def grow(self) -> None:
        self.optimizer.add_param_group({"params": list(self.model.grow().parameters()), "lr": 0.02})

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        while len(self.optimizer.param_groups) < len(state["optimizer"]["param_groups"]):
            self.grow()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@kind("added-parameters")
def _added(width: int) -> Job:
    """The state outgrows its slots at steps 4 and 9."""
    grown = Grown(width)

    def train(step: int, _: Ckpt) -> Any:
        if step in (4, 9):
            grown.grow()
        return fit(grown.model, grown.optimizer, step)

    return Job({"grown": grown}, train)


class GrowingModule(Growing):
    """The same by itself: loading grows it first."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        while any(name.startswith(f"blocks.{len(self.blocks)}.") for name in state_dict):
            self.grow()
        return super().load_state_dict(state_dict, strict, assign)


class GrowingAdam(torch.optim.Adam):
    """An optimizer of a GrowingModule, which is restored before it."""

    def __init__(self, model: GrowingModule) -> None:
        super().__init__([*model.first.parameters(), *model.last.parameters()], 0.01)
        self.model = model

    def catch_up(self) -> None:
        for block in self.model.blocks[len(self.param_groups) - 1 :]:
            self.add_param_group({"params": list(block.parameters()), "lr": 0.02})

    def load_state_dict(self, state_dict: Any) -> None:
        self.catch_up()
        super().load_state_dict(state_dict)


@kind("added-modules")
def _added_modules(width: int) -> Job:
    """Module and optimizer that grow, given as what they are."""
    model = GrowingModule(width)
    optimizer = GrowingAdam(model)

    def train(step: int, _: Ckpt) -> Any:
        if step in (4, 9):
            model.grow()
            optimizer.catch_up()
        return fit(model, optimizer, step)

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("clamp-by-hand")
def _clamp(width: int) -> Job:
    """Right after the step that fenced them, through `.data`."""
    model = net(width)
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        fit(model, optimizer, step)
        for p in model.parameters():
            p.data.clamp_(-0.1, 0.1)

    return Job({"model": model, "optimizer": optimizer}, train)


def _hand_sgd(model: nn.Module, moments: dict[str, Tensor], step: int, ckpt: Ckpt, *, fenced: bool) -> None:
    model.zero_grad()
    loss_of(model, step).backward()
    if fenced:
        ckpt.fence()
    with torch.no_grad():
        for name, p in model.named_parameters():
            assert p.grad is not None
            moments[name].mul_(0.9).add_(p.grad)
            p.sub_(0.05 * moments[name])


class Lion(torch.optim.Optimizer):
    """A user's own: state of numbers and lists beside tensors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.001, "betas": [0.9, 0.99]})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state.setdefault("trace", []).append(torch.tensor(float(p.grad.abs().max())))
                mean = state.setdefault("mean", torch.zeros_like(p))
                p.sub_(group["lr"] * (mean * group["betas"][0] + p.grad).sign() / state["count"] ** 0.5)
                mean.lerp_(p.grad, 1 - group["betas"][1])
            group["betas"][0] *= 0.99


@kind("own-optimizer-class")
def _own_class(width: int) -> Job:
    model = net(width)
    return simple(model, Lion(model.parameters()))


@kind("moments-by-hand")
def _moments(width: int) -> Job:
    """Learning rate, moments and weights are changed by hand after the step."""
    model = net(width)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        loss = fit(model, optimizer, step)
        optimizer.param_groups[0]["lr"] *= 0.95
        for p, state in optimizer.state.items():
            state["exp_avg"].mul_(0.9)
            p.data.mul_(0.999)
        return loss

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("own-optimizer")
def _own(width: int) -> Job:
    """No torch.optim anywhere: the loop calls fence() before it mutates."""
    model = net(width)
    moments = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Job({"model": model, "moments": moments}, lambda step, ckpt: _hand_sgd(model, moments, step, ckpt, fenced=True))


@kind("own-optimizer-unfenced", may_drop=True)
def _unfenced(width: int) -> Job:
    """The same without fence(): a snapshot may be lost, none may be wrong."""
    model = net(width)
    moments = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Job({"model": model, "moments": moments}, lambda step, ckpt: _hand_sgd(model, moments, step, ckpt, fenced=False))


class Shuffled:
    """A loader: shuffles each epoch with its own generator, and knows its position."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.order: list[int] = []
        self.at = 0

    def next(self) -> int:
        if self.at == len(self.order):
            self.order, self.at = torch.randperm(5, generator=self.generator).tolist(), 0
        self.at += 1
        return self.order[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order, self.at = state["order"], state["at"]


@kind("loader")
def _loader(width: int) -> Job:
    model, loader = net(width), Shuffled()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    own = torch.Generator()

    def train(step: int, _: Ckpt) -> Any:
        torch.rand(loader.next(), generator=own)
        return fit(model, optimizer, loader.next())

    return Job({"model": model, "optimizer": optimizer, "loader": loader, "own": own}, train)


@kind("dropout")
def _dropout(width: int) -> Job:
    model = net(width, nn.Dropout(0.3))
    return simple(model, torch.optim.Adam(model.parameters(), 0.01))


@kind("random-everywhere")
def _random(width: int) -> Job:
    """Python's, NumPy's and torch's generators; gauss keeps a second number back."""
    model = net(width)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def train(step: int, _: Ckpt) -> Any:
        factor = random.gauss(1, 0.1) * numpy.random.normal(1, 0.1)
        if random.random() < 0.5:
            factor += float(torch.randn(()))
        optimizer.zero_grad()
        (loss_of(model, numpy.random.randint(100)) * factor).backward()
        optimizer.step()

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("values")
def _values(width: int) -> Job:
    """Plain values of all kinds, replaced and changed in place."""
    values: dict[str, Any] = {"history": [], "nan": math.nan, "best": math.inf, 3: b"raw", "pair": (1, 2.5j), "none": None}
    numbers: list[Any] = []
    array, tensor = {"a": numpy.zeros(width)}, torch.zeros(width)

    def train(step: int, ckpt: Ckpt) -> Any:
        values["history"].append(-0.0 if step % 2 else step / 3)
        values["best"] = min(values["best"], numpy.float32(1 / (step + 1)))
        values[3] += bytes([step])
        values["huge"] = 3 ** (step * 200)
        values["pair"] = (*values["pair"], {"step": step})
        numbers.append({"tensor": torch.full((step,), step), "set": {step, "x"}})
        array["a"] += step
        tensor.add_(step)
        ckpt["epoch"] += 1
        ckpt["name"] = f"step {step}"

    return Job({"values": values, "numbers": numbers, "array": array, "tensor": tensor, "epoch": 0, "name": ""}, train)


class Lora(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = net(width).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@kind("lora")
def _lora(width: int) -> Job:
    """Nearly everything is frozen, and must be in every snapshot all the same."""
    model = Lora(width)
    return simple(model, torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 0.01))


@kind("unfreezing")
def _unfreezing(width: int) -> Job:
    """Frozen until step 5, frozen again at step 10; touches by hand of what has been frozen from the start."""
    model = net(width)
    never = nn.Linear(width, width).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def train(step: int, ckpt: Ckpt) -> Any:
        model[2].requires_grad_(5 <= step < 10)
        if step % 4 == 3:
            ckpt.fence()
            with torch.no_grad():
                never.weight.add_(1)
        return fit(model, optimizer, step)

    return Job({"model": model, "never": never, "optimizer": optimizer}, train)


@kind("many-small")
def _many(width: int) -> Job:
    model = nn.ModuleList([nn.Linear(3, 2) for _ in range(100)])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        optimizer.zero_grad()
        x = batch(step)[0][:, :3]
        sum(layer(x).square().mean() for layer in model).backward()  # type: ignore[union-attr]
        optimizer.step()

    return Job({"model": model, "optimizer": optimizer}, train)
