"""The measured systems as the driver sees them: name, environment, launcher. What runs in their processes is beside this
module, one module a system, and is imported only there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..environments import Environment, Unavailable

OURS = Environment("ours")
TORCHSNAPSHOT = Environment("torchsnapshot", "torchsnapshot")
DLROVER = Environment("dlrover", "dlrover", torch="own")


@dataclass(frozen=True)
class System:
    """`module` is what implements it in this package, `variant` what it is told (see `base.Backend.open`)."""

    name: str
    title: str
    module: str
    variant: str = ""
    environment: Environment = OURS

    def command(self, script: Sequence[str]) -> list[str]:
        """How its process is started."""
        if self.module == "dlrover":
            launcher = str(self.environment.folder / "bin" / "dlrover-run")
            return [launcher, "--standalone", "--nproc-per-node=1", "--max-restarts=0", *script]
        python = sys.executable if self.environment is OURS else str(self.environment.python)
        return [python, *script]

    def environ(self, mark: str, folder: Path) -> dict[str, str]:
        """What it wants to find in its environment. `mark` is in the name of whatever it shares with others."""
        if self.module == "holdfast":
            return {"HOLDFAST_DIR": str(folder / "holdfast"), "HOLDFAST_CAPTURE": self.variant or "auto"}
        if self.module == "dlrover":
            path = f"{self.environment.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
            return {"ELASTIC_JOB_NAME": mark, "PATH": path, "DLROVER_LOG_LEVEL": "WARNING"}
        return {}


_ALL = [
    System("none", "no saves", "none"),
    System("plain", "plain copy into shared memory", "plain"),
    System("holdfast", "Holdfast (auto)", "holdfast", "auto"),
    System("holdfast-lazy", "Holdfast (lazy)", "holdfast", "lazy"),
    System("holdfast-lazy1", "Holdfast (lazy, 1 thread)", "holdfast", "lazy:1"),
    System("holdfast-lazy2", "Holdfast (lazy, 2 threads)", "holdfast", "lazy:2"),
    System("holdfast-sync", "Holdfast (sync)", "holdfast", "sync"),
    System("torch-save", "torch.save / torch.load", "torch_save"),
    System("torch-mmap", "torch.save / torch.load(mmap=True)", "torch_save", "mmap"),
    System("dcp", "DCP async_save / load", "dcp", "default"),
    System("dcp-shm", "DCP async_save, async shared-memory stager", "dcp", "shm"),
    System("torchsnapshot", "TorchSnapshot async_take", "torchsnapshot", environment=TORCHSNAPSHOT),
    System("dlrover", "DLRover 0.6.1 memory save (torch 2.5.1)", "dlrover", environment=DLROVER),
    System("nvrx", "NVRx local checkpoint", "nvrx"),
]

PEERS = ("torch-save", "dcp", "dcp-shm", "torchsnapshot", "dlrover", "nvrx")


def by_name(name: str) -> System:
    """Raises Unavailable, with the reason, for a system that cannot run on this machine."""
    system = next(s for s in _ALL if s.name == name)
    if name == "nvrx" and not Path("/dev/nvidia0").exists():
        raise Unavailable("needs a GPU, this machine has none")
    if name == "nvrx":
        raise Unavailable("is not measured by this benchmark yet, although there is a GPU")
    return system


def title(name: str) -> str:
    """What the table calls it."""
    return next(s for s in _ALL if s.name == name).title
