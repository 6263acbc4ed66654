"""A small character-level GPT on the source of Python's standard library, in plain PyTorch, with five lines of Holdfast.

    python train.py                                  one process, snapshots in .holdfast/train
    holdfast run -n 2 train.py                       two processes, kept alive by Holdfast on this machine
    kubectl apply -f trainingjob.yaml                on a cluster

The last line is a hash of the weights: with the same arguments and number of ranks it is the same, bit for bit, however often
the run was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import sysconfig
from pathlib import Path

import holdfast  # (1)
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

VOCABULARY = 128  # ASCII; everything else becomes "?"


class Block(nn.Module):
    """Causal self-attention, then two dense layers, each with a residual."""

    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.ones(context, context).tril().bool(), persistent=False)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Spelled out: the fused kernels are not deterministic on every device."""
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        weights = self.dropout(scores.masked_fill(~self.mask[:length, :length], -torch.inf).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attend(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head; returns the loss."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, context, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.size(1), device=inputs.device))
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Batches:
    """Random windows of the text, another sequence on each rank. Its position is the state of its generator."""

    def __init__(self, text: torch.Tensor, batch: int, context: int, seed: int) -> None:
        self.text, self.batch, self.context = text, batch, context
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(self.text) - self.context - 1, (self.batch, 1), generator=self.generator)
        windows = self.text[starts + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.generator.set_state(state["generator"])


def standard_library(characters: int) -> torch.Tensor:
    """The text as bytes below 128, from the modules of this Python in alphabetical order."""
    text = bytearray()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += file.read_bytes()
        if len(text) >= characters:
            break
    codes = torch.frombuffer(text[:characters], dtype=torch.uint8)
    return torch.where(codes < VOCABULARY, codes, ord("?"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="sequences per rank and step")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--characters", type=int, default=2_000_000, help="how much of the standard library to read")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resilient", action="store_true", help="when a rank dies, the others go on in their processes")
    return parser.parse_args()


def set_up(seed: int) -> tuple[int, int, torch.device]:
    """Rank, number of ranks, device; everything random is seeded, every operation deterministic."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    return rank, world, device


def distributed(model: nn.Module) -> nn.Module:
    """DDP that adds gradients in the same order in every step: it would otherwise regroup them after its first one, also after
    the first one that follows a restart, and with more than two ranks another grouping gives other last bits. (DDP warns that
    it finds no unused parameters: that is fine.)"""
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(bytes(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).tolist()))
    return digest.hexdigest()


def main() -> None:
    args = arguments()
    rank, world, device = set_up(args.seed)
    gpt = GPT(args.layers, args.width, args.heads, args.context, args.dropout).to(device)
    model = distributed(gpt) if world > 1 else gpt
    torch.manual_seed(args.seed + 1 + rank)  # other dropout on each rank
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.steps)
    loader = Batches(standard_library(args.characters), args.batch, args.context, seed=1000 * args.seed + rank)

    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)  # (2)
    for step in ckpt.steps(args.steps):  # (3)
        inputs, targets = loader.next()
        loss = model(inputs.to(device), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        ckpt.snapshot(step, loss=loss)  # (4)
        if rank == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    if rank == 0:
        print(f"final-weights sha256={weights_hash(gpt)}", flush=True)
    if device.type == "cuda" and world > 1:
        dist.destroy_process_group()  # NCCL wants it; with gloo it can hang while the DDP module is alive


if __name__ == "__main__":
    sys.exit(holdfast.resilient(main) if arguments().resilient else main())
