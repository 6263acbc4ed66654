"""Training set-ups, each a tiny deterministic job that exercises one kind of state; `resume_harness` kills and resumes them.

A kind makes a `Job`: what is handed to the Checkpointer, and one step of training. A step draws its batch from its number, so
that everything else that it depends on (weights, moments, schedules, random states, values) must have come back bit for bit.
`width` makes the state small or large enough for a kill to hit a copy. `kinds_of_state` holds the less usual ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules


class Ckpt(Protocol):
    """What a training loop uses of the Checkpointer beside `snapshot`."""

    def fence(self) -> None: ...
    def __getitem__(self, name: str) -> Any: ...
    def __setitem__(self, name: str, value: Any) -> None: ...


@dataclass(frozen=True)
class Job:
    """`given` goes to the Checkpointer by name; `train(step, ckpt)` does one step."""

    given: dict[str, Any]
    train: Callable[[int, Ckpt], Any]


Make = Callable[[int], Job]
KINDS: dict[str, Make] = {}
MAY_DROP: set[str] = set()  # kinds that mutate behind the fences: a dropped snapshot is right, a wrong one is not


def kind(name: str, *, may_drop: bool = False) -> Callable[[Make], Make]:
    """Register a function from a width to a Job."""

    def register(make: Make) -> Make:
        assert name not in KINDS
        KINDS[name] = make
        if may_drop:
            MAY_DROP.add(name)
        return make

    return register


def batch(step: int, micro: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [4, 8] and targets [4, 1] of a step, without touching the global generators."""
    own = torch.Generator().manual_seed(1000 * step + micro)
    return torch.randn(4, 8, generator=own), torch.randn(4, 1, generator=own)


def net(width: int, *extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), *extra, nn.ReLU(), nn.Linear(width, 1))


def loss_of(model: nn.Module, step: int, micro: int = 0) -> Tensor:
    x, y = batch(step, micro)
    return nn.functional.mse_loss(model(x), y)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    optimizer.step()
    return loss.detach()


def simple(model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> Job:
    return Job({"model": model, "optimizer": optimizer, **more}, lambda step, _: fit(model, optimizer, step))


def _optimizer(name: str, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    def build(width: int) -> Job:
        model = net(width)
        return simple(model, make(model.parameters()))

    kind(name)(build)


_optimizer("sgd-momentum", lambda p: torch.optim.SGD(p, 0.005, momentum=0.9, nesterov=True, foreach=False))
_optimizer("sgd-foreach", lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=True))
_optimizer("sgd-fused", lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True))
_optimizer("adam", lambda p: torch.optim.Adam(p, 0.01, foreach=False))
_optimizer("adam-foreach", lambda p: torch.optim.Adam(p, 0.01, foreach=True))
_optimizer("adamw-fused", lambda p: torch.optim.AdamW(p, 0.01, fused=True))
_optimizer("adamw-amsgrad", lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True))
_optimizer("rmsprop-centered", lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.5))
_optimizer("adagrad", lambda p: torch.optim.Adagrad(p, 0.01))  # its state exists before the first step
_optimizer("adafactor", lambda p: torch.optim.Adafactor(p, 0.01))


@kind("lbfgs")
def _lbfgs(width: int) -> Job:
    """Its state holds lists of tensors that grow, and it keeps them under the first parameter alone."""
    model = net(min(width, 64))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3, history_size=4, line_search_fn="strong_wolfe")

    def train(step: int, _: Ckpt) -> Any:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        return optimizer.step(closure)  # type: ignore[arg-type]

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("sparse-adam")
def _sparse(width: int) -> Job:
    """Only the rows that were looked up change."""
    table, head = nn.Embedding(4 * width, 16, sparse=True), nn.Linear(16, 1)
    rows, dense = torch.optim.SparseAdam(table.parameters(), 0.01), torch.optim.Adam(head.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        rows.zero_grad()
        dense.zero_grad()
        ids = torch.randint(0, 4 * width, (4, 3), generator=torch.Generator().manual_seed(step))
        loss = head(table(ids).mean(1)).square().mean()
        loss.backward()
        rows.step()
        dense.step()
        return loss.detach()

    return Job({"table": table, "head": head, "rows": rows, "dense": dense}, train)


@kind("gan")
def _gan(width: int) -> Job:
    """Two optimizers in turn: the first one's parameters change while the other's are still being copied."""
    maker, critic = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 8)), net(width)
    first, second = torch.optim.Adam(maker.parameters(), 0.01), torch.optim.AdamW(critic.parameters(), 0.01, fused=True)

    def train(step: int, _: Ckpt) -> Any:
        second.zero_grad()
        (critic(maker(torch.randn(4, 4)).detach()).mean() - critic(batch(step)[0]).mean()).backward()
        second.step()
        first.zero_grad()
        loss = -critic(maker(torch.randn(4, 4))).mean()
        loss.backward()
        first.step()
        return loss.detach()

    return Job({"maker": maker, "critic": critic, "first": first, "second": second}, train)


@kind("gan-turns")
def _gan_turns(width: int) -> Job:
    """Each optimizer steps in every other step only."""
    models = [net(width), net(width)]
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in models]
    given = {f"{what}{i}": v for what, vs in (("model", models), ("optimizer", optimizers)) for i, v in enumerate(vs)}
    return Job(given, lambda step, _: fit(models[step % 2], optimizers[step % 2], step))


@kind("step-in-backward")
def _in_backward(width: int) -> Job:
    """An optimizer per parameter that steps inside backward, as soon as the gradient is there."""
    model = net(width)
    each = {p: torch.optim.Adam([p], 0.01) for p in model.parameters()}

    def now(p: Tensor) -> None:
        each[p].step()  # type: ignore[index]
        each[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(now)

    def train(step: int, _: Ckpt) -> Any:
        loss = loss_of(model, step)
        loss.backward()
        return loss.detach()

    return Job({"model": model, **{f"optimizer{i}": o for i, o in enumerate(each.values())}}, train)


@kind("accumulation")
def _accumulation(width: int) -> Job:
    """Three micro-batches a step, a snapshot after each optimizer step."""
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        optimizer.zero_grad(set_to_none=False)
        for micro in range(3):
            (loss_of(model, step, micro) / 3).backward()
        optimizer.step()

    return Job({"model": model, "optimizer": optimizer}, train)


class Gradients:
    """Gradients are no part of a module's state_dict: who snapshots in mid-accumulation hands them over like this."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        return {name: p.grad for name, p in self._model.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, p in self._model.named_parameters():
            p.grad = state[name]


@kind("accumulation-pending")
def _pending(width: int) -> Job:
    """A snapshot after each micro-batch: backward adds to gradients that are part of the snapshot."""
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        loss = loss_of(model, step)
        loss.backward()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()

    return Job({"model": model, "optimizer": optimizer, "gradients": Gradients(model)}, train)


@kind("autocast-bf16")
def _autocast(width: int) -> Job:
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()

    return Job({"model": model, "optimizer": optimizer}, train)


@kind("grad-scaler")
def _scaler(width: int) -> Job:
    """Starts far too high: the first steps are skipped as infinite, later ones let the scale grow again."""
    model = net(width)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**113, growth_interval=3)

    def train(step: int, _: Ckpt) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        scaler.scale(loss * 1e5).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return Job({"model": model, "optimizer": optimizer, "scaler": scaler}, train)


def _scheduled(name: str, make: Callable[[torch.optim.Optimizer], Any], make_optimizer: Callable[[Any], Any]) -> None:
    def build(width: int) -> Job:
        model = net(width)
        optimizer = make_optimizer(model.parameters())
        scheduler = make(optimizer)

        def train(step: int, _: Ckpt) -> Any:
            loss = fit(model, optimizer, step)
            scheduler.step(*((loss,) if name == "plateau" else ()))
            return loss

        return Job({"model": model, "optimizer": optimizer, "scheduler": scheduler}, train)

    kind(name)(build)


_scheduled("onecycle", lambda o: schedules.OneCycleLR(o, 0.05, 20), lambda p: torch.optim.Adam(p, 0.01))
_scheduled("plateau", lambda o: schedules.ReduceLROnPlateau(o, patience=0), lambda p: torch.optim.SGD(p, 0.1))
_scheduled(
    "sequential",
    lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o), schedules.CosineAnnealingLR(o, 8)], [3]),
    lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
)
_scheduled(
    "tensor-lr",
    lambda o: schedules.ExponentialLR(o, 0.9),
    lambda p: torch.optim.Adam(p, torch.tensor(0.05), foreach=False),
)


@kind("averaged-model")
def _averaged(width: int) -> Job:
    """torch's EMA: parameters that no optimizer steps, changed in place after the step."""
    model = net(width, nn.BatchNorm1d(width))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def train(step: int, _: Ckpt) -> Any:
        fit(model, optimizer, step)
        average.update_parameters(model)

    return Job({"model": model, "optimizer": optimizer, "average": average}, train)


@kind("ema-by-hand")
def _ema(width: int) -> Job:
    """The averages are plain tensors in a dict, moved towards the weights before the optimizer steps."""
    model = net(width)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def train(step: int, _: Ckpt) -> Any:
        with torch.no_grad():
            for name, p in model.named_parameters():
                shadow[name].lerp_(p, 0.1)  # looked up each time: a dict is restored in place, its tensors are not
        fit(model, optimizer, step)

    return Job({"model": model, "optimizer": optimizer, "shadow": shadow}, train)
