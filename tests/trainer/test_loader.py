"""torchdata's StatefulDataLoader: stored without pickle, and the same batches follow, with and without worker processes."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.same import same
from trainer.test_checkpointer import checkpointer

torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")]


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, index * index])


class Counted(torch.utils.data.IterableDataset[int]):
    """Keeps its own position and its own generator: each worker goes on where it was."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 40:
            self.at += 1
            yield self.at * 1000 + int(torch.randint(1000, (), generator=self.generator))
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.generator.set_state(state["generator"])


def loader(kind: str, workers: int) -> Any:
    more: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    if kind == "own order":
        more |= {"generator": torch.Generator().manual_seed(1)}
    dataset = Counted() if kind == "iterable" else Numbers()
    return torchdata.StatefulDataLoader(dataset, batch_size=4, shuffle=kind != "iterable", **more)


def endless(batches: Any) -> Iterator[Any]:
    """Epoch after epoch, and a draw from the global generator with each batch, as dropout makes one."""
    while True:
        for batch in batches:
            yield batch, torch.rand(2)


def take(stream: Iterator[Any], count: int) -> list[Any]:
    return [copy.deepcopy(next(stream)) for _ in range(count)]


CASES = [(kind, 0, taken) for kind in ("shuffled", "own order", "iterable") for taken in (0, 3, 8)]
CASES += [("own order", 2, 8), ("iterable", 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers", "taken"), CASES)
def test_the_same_batches_and_random_numbers_follow(local: Path, kind: str, workers: int, taken: int) -> None:
    torch.manual_seed(0)
    first = loader(kind, workers)
    with checkpointer(loader=first) as ckpt:
        ckpt.restore()
        stream = endless(first)
        take(stream, taken)
        assert ckpt.snapshot(0)
    expected = take(stream, 10)
    del stream, first, ckpt  # worker processes are forks: they would hold the lock of the directory
    gc.collect()
    torch.manual_seed(1)
    second = loader(kind, workers)
    with checkpointer(loader=second) as ckpt:
        assert ckpt.restore() == 0
        assert same(take(endless(second), 10), expected)
