"""The Checkpointer without a sidecar: what was captured comes back, bit for bit, or an older step does; never a broken one."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast
import numpy
import pytest
import torch
from holdfast._state.mapping import open_arena
from holdfast_core import arena

from trainer.same import bits, same
from trainer.test_codec import DTYPES, random_tensor

pytestmark = pytest.mark.torch


@contextmanager
def checkpointer(**given: Any) -> Iterator[holdfast.Checkpointer]:
    ckpt = holdfast.Checkpointer(**given)
    try:
        yield ckpt
    finally:
        ckpt.close()


def save(step: int = 0, **given: Any) -> None:
    with checkpointer(**given) as ckpt:
        ckpt.restore()
        assert ckpt.snapshot(step)


def load(**given: Any) -> int:
    with checkpointer(**given) as ckpt:
        return ckpt.restore()


class Odd(torch.nn.Module):
    """Tied weights, a parameter that is not contiguous, nothing in one, one number in another, buffers of all kinds."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.strided = torch.nn.Parameter(torch.randn(4, 6).t()[::2])
        self.empty = torch.nn.Parameter(torch.empty(0, 7))
        self.scalar = torch.nn.Parameter(torch.randn(()))
        self.brain = torch.nn.Parameter(torch.randn(3).to(torch.bfloat16))
        self.norm = torch.nn.BatchNorm1d(3)
        for dtype in DTYPES:
            self.register_buffer(f"buffer_{dtype}".replace(".", "_"), random_tensor(dtype, (2, 3), seed))


def test_every_kind_of_tensor_comes_back_in_place(local: Path) -> None:
    saved, live = Odd(1), Odd(2)
    addresses = {k: v.data_ptr() for k, v in live.state_dict().items()}
    save(model=saved)
    assert load(model=live) == 0
    assert same(dict(live.state_dict()), dict(saved.state_dict()))
    assert {k: v.data_ptr() for k, v in live.state_dict().items()} == addresses
    assert live.head.weight is live.embed.weight


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}]),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "rprop": torch.optim.Rprop,
    "tensor-lr": lambda p: torch.optim.Adam(p, torch.tensor(0.1), foreach=False),
}


def parameters(seed: int) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]


def step(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_go_on_as_if_nothing_had_happened(local: Path, kind: str) -> None:
    params, others = parameters(1), parameters(2)
    optimizer, other = OPTIMIZERS[kind](params), OPTIMIZERS[kind](others)
    for _ in range(3):
        step(optimizer, params)
    save(optimizer=optimizer, params=list(params))
    torch_state = torch.get_rng_state()
    step(optimizer, params)
    with torch.no_grad():
        for mine, theirs in zip(others, params, strict=True):
            mine.copy_(theirs)  # the parameters themselves are not the optimizer's
    live = {"params": [p.detach() for p in others]}
    assert load(optimizer=other, params=live["params"]) == 0
    for mine, saved in zip(others, live["params"], strict=True):
        mine.data = saved
    assert bits(torch.get_rng_state()) == bits(torch_state)
    step(other, others)
    assert same([p.detach() for p in others], [p.detach() for p in params])
    assert same(other.state_dict(), optimizer.state_dict())


def test_float32_moments_of_bfloat16_parameters_keep_their_bits(local: Path) -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        p = torch.nn.Parameter(torch.randn(5).to(torch.bfloat16))
        return p, torch.optim.SGD([p], 0.1, momentum=0.9)

    (p, optimizer), (q, other) = make(), make()
    moments = torch.randn(5, dtype=torch.float32) / 3
    optimizer.state[p]["momentum_buffer"] = moments
    save(optimizer=optimizer)
    load(optimizer=other)
    assert same(other.state[q]["momentum_buffer"], moments), "torch casts it to bfloat16: that must be undone"


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 2, 2]),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, 20),
    "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(local: Path, kind: str) -> None:
    def make() -> Any:
        params = parameters(1)
        optimizer = torch.optim.SGD(params, 0.1, momentum=0.9)
        scheduler = SCHEDULERS[kind](optimizer)
        return params, optimizer, scheduler, ((torch.tensor(0.5),) if kind == "plateau" else ())

    params, optimizer, scheduler, argument = make()
    for _ in range(4):
        step(optimizer, params)
        scheduler.step(*argument)
    save(optimizer=optimizer, scheduler=scheduler)
    _, other, again, _ = make()
    load(optimizer=other, scheduler=again)
    assert same(again.state_dict(), scheduler.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_random_numbers_go_on_where_they_were(local: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), numpy.random.normal(), torch.rand(2), torch.rand(2, generator=generator)]

    draw()
    save(own=generator)
    expected = draw()
    draw()
    load(own=generator)
    assert same(draw(), expected)


def test_plain_values(local: Path) -> None:
    mutable: dict[str, Any] = {"best": 0.1, "history": [1, 2]}
    numbers, tensor, array = [1, 2], torch.ones(2), numpy.arange(3)
    with checkpointer(extra=mutable, numbers=numbers, tensor=tensor, array=array, epoch=3) as ckpt:
        ckpt.restore()
        ckpt["epoch"] = 4
        assert ckpt.snapshot(0)
    mutable["best"], numbers[:], tensor[:] = 9, [], 0
    with checkpointer(extra=mutable, numbers=numbers, tensor=tensor, array=None, epoch=0) as ckpt:
        assert ckpt.restore() == 0
        assert (mutable, numbers, ckpt["epoch"]) == ({"best": 0.1, "history": [1, 2]}, [1, 2], 4)
        assert same(tensor, torch.ones(2))
        with pytest.raises(KeyError):
            ckpt["nothing"]


def test_steps_continue_after_the_restored_one(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(_run(local, 3)) == [0, 1, 2]
    assert list(_run(local, 5)) == [3, 4]
    assert "resuming after step 2" in capsys.readouterr().err
    assert list(_run(local, 5)) == []
    assert "nothing is left to do" in capsys.readouterr().err


def _run(folder: Path, total: int) -> Iterator[int]:
    ckpt = holdfast.Checkpointer(x=torch.zeros(1))
    for number in ckpt.steps(total):
        assert ckpt.snapshot(number, loss=torch.tensor(1.0, requires_grad=True))
        yield number


def test_nothing_restored_aliases_the_arena(local: Path) -> None:
    params = parameters(1)
    optimizer = torch.optim.Adam(params)
    step(optimizer, params)
    save(optimizer=optimizer, t=torch.arange(5), b={"raw": b"bytes", "array": numpy.arange(4)})
    others = parameters(1)
    other, t, b = torch.optim.Adam(others), torch.zeros(5, dtype=torch.int64), {"raw": b"", "array": None}
    load(optimizer=other, t=t, b=b)
    before = [bits(v) for s in other.state.values() for v in s.values()], bits(t), b["array"].tobytes()  # type: ignore[attr-defined]
    (path,) = local.glob("*.arena")
    path.write_bytes(b"\xff" * path.stat().st_size)
    after = [bits(v) for s in other.state.values() for v in s.values()], bits(t), b["array"].tobytes()  # type: ignore[attr-defined]
    assert before == after


def test_each_snapshot_holds_its_own_values(local: Path) -> None:
    """Neither cached handles nor reused buffers nor aliases of live tensors (bugs 10 and 11 of other systems)."""
    x = torch.zeros(1000)
    with checkpointer(x=x) as ckpt:
        ckpt.restore()
        for number in range(7):
            x.fill_(number)
            assert ckpt.snapshot(number)
            x.fill_(-1)
    (path,) = local.glob("*.arena")
    mapped = open_arena(path)
    held = {
        s.step: mapped.bytes[o : o + 4].view(torch.float32).item()
        for s in mapped.slots()
        for o in [mapped.header.region(s.index)]
    }
    assert held == {6: 6.0, 5: 5.0, 4: 4.0}


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("where", ["data", "manifest", "slot header"])
def test_a_flipped_bit_costs_one_step(local: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.zeros(1000)
    with checkpointer(x=x) as ckpt:
        ckpt.restore()
        for number in range(5):
            x.fill_(number)
            ckpt.snapshot(number)
    (path,) = local.glob("*.arena")
    mapped = open_arena(path)
    newest = max(mapped.slots(), key=lambda s: s.step)
    region = mapped.header.region(newest.index)
    _flip(
        path,
        {"data": region + 17, "manifest": region + newest.data_bytes + 9, "slot header": arena.PAGE * (1 + newest.index) + 9}[
            where
        ],
    )
    assert load(x=x) == 3
    assert x.unique().tolist() == [3.0]
    if where != "slot header":
        assert "step 4" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_file_is_not_believed(local: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(1000)
    save(3, x=x)
    (path,) = local.glob("*.arena")
    with path.open("r+b") as file:
        file.truncate(size)
    assert load(x=x) == -1
    assert "ignoring" in capsys.readouterr().err
    save(5, x=x)
    assert load(x=x) == 5


def test_a_snapshot_that_outgrows_its_slots_gets_larger_ones(local: Path) -> None:
    state: dict[str, Any] = {"x": torch.zeros(10)}
    with checkpointer(state=state) as ckpt:
        ckpt.restore()
        for number in range(6):
            state["x"] = torch.full((10 ** (number + 1),), float(number))
            assert ckpt.snapshot(number)
    assert load(state=state) == 5
    assert state["x"].numel() == 10**6
    assert len(list(local.glob("*.arena"))) <= 2


def test_what_cannot_be_stored_is_refused_at_once(local: Path) -> None:
    with (
        checkpointer(model=torch.nn.Linear(1, 1), odd={"deep": [object()]}) as ckpt,
        pytest.raises(TypeError, match=r"odd\.deep\.0"),
    ):
        ckpt.snapshot(0)
    with pytest.raises(TypeError, match="cannot tell its position"):
        holdfast.Checkpointer(loader=torch.utils.data.DataLoader([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'rng' is a name"):
        holdfast.Checkpointer(rng=1)


def test_no_later_failure_reaches_the_training_loop(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Moody:
        def __init__(self) -> None:
            self.value: Any = 1

        def state_dict(self) -> Any:
            if self.value == "raise":
                raise RuntimeError("out of order")
            return {"value": self.value}

        def load_state_dict(self, state: Any) -> None:
            self.value = state["value"]

    moody = Moody()
    with checkpointer(moody=moody) as ckpt:
        ckpt.restore()
        assert ckpt.snapshot(0)
        for number, value in enumerate([object(), "raise", object(), 2], start=1):
            moody.value = value
            assert ckpt.snapshot(number) == (value == 2)
    said = capsys.readouterr().err
    assert said.count("RuntimeError: out of order") == 1
    assert said.count("moody.value") == 1, "the same problem is said once"
    assert load(moody=moody) == 4
    assert moody.value == 2


def test_a_full_disk_is_said_once_and_training_goes_on(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.zeros(1 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with checkpointer(x=x) as ckpt:
            ckpt.restore()
            assert [ckpt.snapshot(n) for n in range(3)] == [False] * 3
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert ckpt.snapshot(3), "as soon as there is room, snapshots are taken again"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.count("free some space") == 1
    assert list(local.glob("*.tmp")) == []
    assert load(x=x) == 3


def test_another_shape_or_dtype_is_an_error_not_a_cast(local: Path) -> None:
    save(model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"float64 in the live model, the snapshot has torch\.float32") as caught:
        load(model=torch.nn.Linear(2, 2).double())
    assert "'model'" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="size mismatch for weight"):
        load(model=torch.nn.Linear(3, 2))


def test_two_runs_in_one_directory_do_not_mix(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast._home.directory._LOCK_SECONDS", 0.2)
    with checkpointer(x=1) as ckpt:
        ckpt.restore()
        with pytest.raises(RuntimeError, match="another process writes"):
            load(x=1)
    save(x=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="holds snapshots of 1 ranks, this run has 2"):
        load(x=1)
