"""A small network that learns to add, with Hugging Face Accelerate and two lines of Holdfast.

    python train.py                                  one process, snapshots in .holdfast/train
    holdfast run -n 2 train.py                       two processes, kept alive by Holdfast on this machine
    kubectl apply -f trainingjob.yaml                on a cluster

The last line is a hash of the weights: with the same arguments and number of ranks it is the same, bit for bit, however often
the run was interrupted, also in the middle of an epoch.
"""

from __future__ import annotations

import argparse
import hashlib

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from holdfast.integrations.accelerate import checkpointer  # (1)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument(
        "--stateful", action="store_true", help="torchdata's StatefulDataLoader: no batch is fetched to be skipped"
    )
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=3,
        dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=arguments.stateful),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True)
        ],  # the same order of additions after a restart
    )
    numbers = torch.rand(arguments.samples, 8)
    loader = DataLoader(TensorDataset(numbers, numbers.sum(1, keepdim=True)), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.999)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ckpt = checkpointer(accelerator, model=model, optimizer=optimizer, loader=loader, scheduler=scheduler)  # (2)
    for inputs, targets in ckpt.batches(arguments.epochs):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ckpt.loss = loss
    accelerator.print(f"final-weights sha256={weights_hash(accelerator.unwrap_model(model))} after {ckpt.step} steps")


if __name__ == "__main__":
    main()
