"""Lightning with what makes resuming hard: validation within the epoch that draws random numbers, a schedule, a stop and a
best checkpoint that follow its result, an accumulation that does not divide the epoch. The loader is of the kind that
is asked for."""

import hashlib
import os
import sys
import warnings

import lightning
import torch
from holdfast.integrations.lightning import HoldfastCallback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

warnings.filterwarnings("ignore")
kind, epochs = sys.argv[1], int(sys.argv[2])


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))

    def loss(self, batch):
        if isinstance(batch, list) and len(batch) == 1:
            batch = batch[0]
        if kind == "two":
            batch = batch["a"][0] + batch["b"][0]
        return (self.net(batch).squeeze(-1) - batch.sum(-1)).square().mean() + torch.rand(()) * 0.1

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self.net(batch[0]).sum() - batch[0].sum()).square() + torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class TwoOptimizers(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net[0].parameters(), lr=1e-2),
            torch.optim.SGD(self.net[4].parameters(), lr=1e-2, momentum=0.9),
        ]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples)


def loader():
    data = TensorDataset(samples)
    if kind == "stateful":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(data, batch_size=4, shuffle=True)
    if kind == "two":
        return {
            "a": DataLoader(data, 4, shuffle=True, drop_last=True),
            "b": DataLoader(TensorDataset(samples[:17]), 4, drop_last=True),
        }
    if kind == "iterable":
        return DataLoader(Stream(), batch_size=4)
    return DataLoader(data, batch_size=4, shuffle=True)


torch.manual_seed(5)
samples = torch.randn(42, 4, generator=torch.Generator().manual_seed(1))
module = TwoOptimizers() if kind == "manual" else Module()
best = ModelCheckpoint(os.environ["HOLDFAST_DIR"] + "-best", monitor="val_loss", save_top_k=1)
stop = EarlyStopping("val_loss", patience=60)
trainer = lightning.Trainer(
    max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[HoldfastCallback(), best, stop], accumulate_grad_batches=1 if kind == "manual" else 3,
    val_check_interval=1.0 if kind in ("iterable", "manual") else 4,
)  # fmt: skip
trainer.fit(module, loader(), DataLoader(TensorDataset(samples[:8]), batch_size=4))
weights = b"".join(t.numpy().tobytes() for t in module.state_dict().values())
print(
    "counted",
    best.best_model_score,
    stop.wait_count,
    trainer.global_step,
    trainer.current_epoch,
    trainer.optimizers[0].param_groups[0]["lr"],
)
print("final-weights", hashlib.sha256(weights).hexdigest())
