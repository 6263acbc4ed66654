"""A small network that learns to add, with Lightning and two lines of Holdfast.

    python train.py                                  one process, snapshots in .holdfast/train
    holdfast run -n 2 train.py                       two processes, kept alive by Holdfast on this machine
    kubectl apply -f trainingjob.yaml                on a cluster

The last line is a hash of the weights: with the same arguments and number of ranks it is the same, bit for bit, however often
the run was interrupted, also in the middle of an epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from typing import Any

import lightning
import torch
from holdfast.integrations.lightning import HoldfastCallback  # (1)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Adder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 256), nn.BatchNorm1d(256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999), "interval": "step"}]


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4000)
    arguments = parser.parse_args()
    lightning.seed_everything(1, verbose=False)
    numbers = torch.rand(arguments.samples, 8)
    data = TensorDataset(numbers, numbers.sum(1, keepdim=True))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=ranks,
        num_nodes=int(os.environ.get("WORLD_SIZE", "1")) // ranks,
        strategy="ddp_find_unused_parameters_true"
        if "RANK" in os.environ
        else "auto",  # the same order of additions after a restart
        accumulate_grad_batches=3,
        deterministic=True,
        callbacks=[HoldfastCallback()],  # (2)
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Adder()
    trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))
    if trainer.is_global_zero:
        print(f"final-weights sha256={weights_hash(module)} after {trainer.global_step} steps", flush=True)


if __name__ == "__main__":
    main()
