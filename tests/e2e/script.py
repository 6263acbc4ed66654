"""What the end-to-end jobs train: tiny, deterministic, and dependent on every piece of captured state.

Each rank draws its batches from its own generator and from dropout; gradients are summed over gloo. Rank 0 prints a hash of the
weights at every step, so that any two runs can be compared step by step. Mounted into the trainers as a ConfigMap.
"""

import argparse
import hashlib
import signal
import time

import holdfast
import torch
import torch.distributed as dist


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--pace", type=float, default=0.05, help="seconds to sleep in each step")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    return parser.parse_args()


def digest(model: torch.nn.Module) -> str:
    whole = hashlib.sha256()
    for tensor in model.state_dict().values():
        whole.update(bytes(tensor.contiguous().view(torch.uint8).flatten().tolist()))
    return whole.hexdigest()


def main() -> None:
    options = parse()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.init_process_group("gloo")
    torch.manual_seed(17)
    width = options.width
    model = torch.nn.Sequential(torch.nn.Linear(width, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1000 + dist.get_rank())
    checkpointer = holdfast.Checkpointer(model=model, optimizer=optimizer)
    for step in checkpointer.steps(options.steps):
        loss = model(torch.randn(4, width)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step} weights {digest(model)[:16]}", flush=True)
        checkpointer.snapshot(step, loss=loss.item())
        time.sleep(options.pace)
    if dist.get_rank() == 0:
        print(f"final-weights sha256={digest(model)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
