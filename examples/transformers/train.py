"""A small GPT-2 on the source of Python's standard library, with the Trainer of Hugging Face and two lines of Holdfast.

    python train.py                                  one process, snapshots in .holdfast/train
    holdfast run -n 2 train.py                       two processes, kept alive by Holdfast on this machine
    kubectl apply -f trainingjob.yaml                on a cluster

Nothing is downloaded: the model is made from its configuration. The last line is a hash of the weights: with the same arguments
and number of ranks it is the same, bit for bit, however often the run was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sysconfig
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from holdfast.integrations.transformers import HoldfastCallback  # (1)
from torch import nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class Text(Dataset):
    """Windows of the text; `labels` are the same tokens, GPT-2 shifts them itself."""

    def __init__(self, characters: int, context: int) -> None:
        raw = b"".join(file.read_bytes() for file in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py")))[:characters]
        self.windows = (torch.frombuffer(bytearray(raw), dtype=torch.uint8) % 128)[: len(raw) // context * context].view(
            -1, context
        )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.windows[index].long()
        return {"input_ids": window, "labels": window}


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--characters", type=int, default=200_000)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=64, n_embd=arguments.width, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    with tempfile.TemporaryDirectory() as unused:
        settings = TrainingArguments(
            output_dir=unused,
            max_steps=arguments.steps,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            ddp_find_unused_parameters=True,  # the same order of additions before and after a restart
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=1,
        )
        trainer = Trainer(model=model, args=settings, train_dataset=Text(arguments.characters, context=64))
        trainer.add_callback(HoldfastCallback(trainer))  # (2)
        trainer.train()
    if trainer.is_world_process_zero():
        print(f"final-weights sha256={weights_hash(trainer.model)}", flush=True)


if __name__ == "__main__":
    main()
