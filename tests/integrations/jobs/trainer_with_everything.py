"""Trainer with what makes resuming hard: evaluation that draws random numbers, a schedule and a stop that follow its result, an
epoch that gradient accumulation does not divide, an order of the data that is drawn from the global generator."""

import hashlib
import sys
import tempfile

import torch
from holdfast.integrations.transformers import HoldfastCallback
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))

    def forward(self, x, labels):
        noise = torch.rand(()) * 0.1  # also in evaluation
        return {"loss": (self.net(x).squeeze(-1) - labels).square().mean() + noise}


def data(n, seed):
    draw = torch.Generator().manual_seed(seed)
    return [{"x": x, "labels": x.sum()} for x in torch.randn(n, 4, generator=draw)]


with tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(3)
    args = TrainingArguments(
        folder, num_train_epochs=int(sys.argv[1]), per_device_train_batch_size=4, gradient_accumulation_steps=3, use_cpu=True,
        eval_strategy="steps", eval_steps=4, logging_steps=5, save_strategy="no", report_to="none", disable_tqdm=True,
        lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0}, learning_rate=1e-2,
        metric_for_best_model="loss",
        accelerator_config={"use_seedable_sampler": False}, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    early = EarlyStoppingCallback(early_stopping_patience=50)
    trainer = Trainer(Model(), args, train_dataset=data(43, 1), eval_dataset=data(8, 2), callbacks=[early])
    trainer.add_callback(HoldfastCallback(trainer))
    trainer.train()
drop = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
history = [
    {k: v for k, v in entry.items() if k not in drop} for entry in trainer.state.log_history if "train_runtime" not in entry
]
weights = b"".join(t.numpy().tobytes() for t in trainer.model.state_dict().values())
print(
    "counted", early.early_stopping_patience_counter, trainer.state.best_metric, trainer.state.global_step, trainer.state.epoch
)
print("history", hashlib.sha256(repr(history).encode()).hexdigest())
print("final-weights", hashlib.sha256(weights).hexdigest())
