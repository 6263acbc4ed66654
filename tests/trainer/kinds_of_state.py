"""More of `kinds`: unusual tensors and modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.kinds import Ckpt, Job, batch, fit, kind, loss_of, net, simple


class Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.head = nn.Linear(width, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        assert self.head.weight is self.embed.weight
        return self.head(torch.tanh(self.embed((x.abs() * 10).long() % 32).mean(1)))[:, :1]


@kind("tied-weights")
def _tied(width: int) -> Job:
    model = Tied(width)
    return simple(model, torch.optim.AdamW(model.parameters(), 0.01))


@kind("batchnorm")
def _batchnorm(width: int) -> Job:
    """Buffers that forward changes, before any fence is near."""
    model = net(width, nn.BatchNorm1d(width))
    return simple(model, torch.optim.SGD(model.parameters(), 0.005, momentum=0.9))


class Renormed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(64, width, max_norm=0.5)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x.abs() * 100).long() % 64).mean(1))


@kind("embedding-max-norm", may_drop=True)
def _max_norm(width: int) -> Job:
    """A parameter that forward changes."""
    model = Renormed(width)
    return simple(model, torch.optim.Adam(model.parameters(), 0.1))


@kind("spectral-norm")
def _spectral(width: int) -> Job:
    """Power iteration in forward, in the old style (plain attributes) and in the new one (parametrizations)."""
    old = nn.utils.spectral_norm(nn.Linear(width, width))
    new = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))
    model = net(width, old, nn.ReLU(), new)
    return simple(model, torch.optim.Adam(model.parameters(), 0.01))


class Strided(nn.Module):
    """Channels last, transposed, expanded from nothing: every parameter but one is not contiguous or empty."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mixed = nn.Parameter((torch.randn(width, 2 * width) / width).t()[::2])
        self.empty = nn.Parameter(torch.empty(0, 7))
        self.scalar = nn.Parameter(torch.randn(()))
        self.register_buffer("nothing", torch.empty(3, 0, dtype=torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        image = x.reshape(-1, 1, 2, 4).repeat(1, 3, 2, 1).contiguous(memory_format=torch.channels_last)
        return (self.conv(image).mean((2, 3)) @ self.mixed).mean(1, keepdim=True) * self.scalar + self.empty.sum()


@kind("strided")
def _strided(width: int) -> Job:
    model = Strided(width)
    return simple(model, torch.optim.Adam(model.parameters(), 0.01, foreach=False))


@kind("strided-foreach")
def _strided_foreach(width: int) -> Job:
    model = Strided(width)
    return simple(model, torch.optim.Adam(model.parameters(), 0.01, foreach=True))


@kind("channels-last-fused")
def _channels_last_fused(width: int) -> Job:
    """The fused step walks memory, not indices: moments that come back with other strides would be mixed up."""
    model = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, width, 2), nn.Flatten(), nn.Linear(width, 1))
    model = model.to(memory_format=torch.channels_last)
    return simple(model, torch.optim.AdamW(model.parameters(), 0.01, fused=True))


class Dtypes(nn.Module):
    """bfloat16 weights, and counters and caches of other types that each step changes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = net(width).to(torch.bfloat16)
        self.register_buffer("eight", torch.randn(width, 3).to(torch.float8_e4m3fn))
        self.register_buffer("other", torch.randn(width).to(torch.float8_e5m2))
        self.register_buffer("int8", torch.arange(width * 8, dtype=torch.int32).to(torch.int8))
        self.register_buffer("mask", torch.rand(width * 7) > 0.5)
        self.register_buffer("wave", torch.randn(width, 5, dtype=torch.complex64))
        self.register_buffer("whole", torch.randn(width, dtype=torch.complex128).conj().resolve_conj())
        self.register_buffer("turned", torch.randn(width, dtype=torch.complex64).conj())  # a flag, not other bytes
        self.register_buffer("minus", torch.randn(width, dtype=torch.complex64).conj().imag)
        self.register_buffer("sixteen", torch.randn(width * 3).to(torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        self.eight.copy_((self.eight.float() * 0.9 + x[0, 0]).to(self.eight.dtype))
        self.other.copy_((self.other.float() + x[0, 1]).to(self.other.dtype))
        self.int8.add_(7)
        self.mask.logical_xor_(torch.rand(self.mask.shape) > 0.5)
        self.wave.mul_(torch.polar(torch.tensor(1.0), x[0, 0]))
        self.turned.add_(complex(x[0, 2], x[0, 3]))
        self.minus.add_(x[0, 4])
        self.whole.add_(complex(x[0, 2], x[0, 3]))
        self.sixteen.mul_(0.99).add_(self.wave.real.mean().half())
        return self.body(x.to(torch.bfloat16)).float() + self.sixteen.float().mean()


@kind("dtypes")
def _dtypes(width: int) -> Job:
    model = Dtypes(width)
    return simple(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))


@kind("master-weights")
def _master(width: int) -> Job:
    """bfloat16 weights in the model, the float32 ones that are stepped beside it; gradients copied over by hand."""
    model = net(width).to(torch.bfloat16)
    master = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(master, 0.01)
    holder = nn.ParameterList(master)

    def train(step: int, ckpt: Ckpt) -> Any:
        x, y = batch(step)
        model.zero_grad()
        nn.functional.mse_loss(model(x.bfloat16()).float(), y).backward()
        for own, p in zip(master, model.parameters(), strict=True):
            own.grad = p.grad.float() if p.grad is not None else None
        optimizer.step()
        ckpt.fence()
        with torch.no_grad():
            for own, p in zip(master, model.parameters(), strict=True):
                p.copy_(own)

    return Job({"model": model, "master": holder, "optimizer": optimizer}, train)


@kind("swapped-data")
def _swapped(width: int) -> Job:
    """The parameters stay the same objects, their memory does not: what a plan remembers of it is stale."""
    model = net(width)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        loss = fit(model, optimizer, step)
        for p in model.parameters():
            if step % 3 == 0:
                p.data = p.data.clone()
            if step == 7 and p.dim() == 2:
                p.data = p.data.t().clone().t()  # other strides
        if step == 10:
            model[2].weight.data = model[2].weight.data.t()  # the same memory, read another way
        return loss

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("replaced-buffers")
def _replaced(width: int) -> Job:
    """Buffers and moments that are new tensors after each step, an optimizer whose state is thrown away on the way."""
    model = net(width)
    model.register_buffer("mean", torch.zeros(width, width))
    optimizer = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9)

    def train(step: int, _: Ckpt) -> Any:
        loss = fit(model, optimizer, step)
        model.mean = model.mean * 0.5 + model[2].weight.detach()
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"] * 0.9
        if step == 6:
            optimizer.state.clear()
        return loss

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("optimizer-not-given")
def _not_given(width: int) -> Job:
    """An optimizer without state need not be captured; it changes the parameters all the same."""
    model = net(width)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return Job({"model": model}, lambda step, _: fit(model, optimizer, step))


@kind("frozen-views")
def _frozen_views(width: int) -> Job:
    """A frozen module whose weights are pieces of what is trained, with version counters of their own."""
    whole = nn.Linear(8, 2 * width, bias=False)
    half = nn.Linear(8, width, bias=False).requires_grad_(False)

    def tie() -> None:
        half.weight.data = whole.weight.data[:width]

    tie()
    optimizer = torch.optim.Adam(whole.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        optimizer.zero_grad()
        x, y = batch(step)
        loss = (whole(x).mean(1, keepdim=True) + half(x).mean(1, keepdim=True) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Job({"half": half, "whole": whole, "optimizer": optimizer}, train)


@kind("inference-tensors")
def _inference(width: int) -> Job:
    """Averages that were made in inference mode: tensors without version counters."""
    model = net(width)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with torch.inference_mode():
        shadow = {name: p.clone() for name, p in model.named_parameters()}

    def train(step: int, _: Ckpt) -> Any:
        loss = fit(model, optimizer, step)
        with torch.inference_mode():
            for name, p in model.named_parameters():
                shadow[name].lerp_(p, 0.1)
        return loss

    return Job({"model": model, "optimizer": optimizer, "shadow": shadow}, train)


@kind("flat-buffer")
def _flat(width: int) -> Job:
    """All parameters are views of one buffer, which is what the optimizer steps."""
    model = net(width)
    sizes = [p.numel() for p in model.parameters()]
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    flat.grad = torch.zeros_like(flat)
    for p, piece, grad in zip(model.parameters(), flat.detach().split(sizes), flat.grad.split(sizes), strict=True):
        p.data, p.grad = piece.view(p.shape), grad.view(p.shape)
    optimizer = torch.optim.Adam([flat], 0.01)

    def train(step: int, _: Ckpt) -> Any:
        assert flat.grad is not None
        flat.grad.zero_()
        loss_of(model, step).backward()
        optimizer.step()

    return Job({"model": model, "flat": nn.ParameterList([flat]), "optimizer": optimizer}, train)


@kind("overlapping-values")
def _overlapping(width: int) -> Job:
    """Tensors that share storage: halves, a transposed view and the whole, all of them changed through one of them."""
    whole = torch.randn(width, width)
    values = {"whole": whole, "top": whole[: width // 2], "turned": whole.t(), "diagonal": whole.diagonal()}

    def train(step: int, _: Ckpt) -> Any:
        for name, value in values.items():  # the dict is restored in place: afterwards they share nothing
            value.mul_(0.9).add_(batch(step)[0].mean() + len(name))

    def separate() -> None:
        values.update({name: value.clone() for name, value in values.items()})

    separate()
    shared = nn.Module()
    shared.register_buffer("whole", whole)
    shared.register_buffer("top", whole[: width // 2])
    shared.register_buffer("turned", whole.t())

    def both(step: int, ckpt: Ckpt) -> Any:
        train(step, ckpt)
        whole.mul_(0.5).add_(batch(step)[0].mean())

    return Job({"shared": shared, "values": values}, both)
