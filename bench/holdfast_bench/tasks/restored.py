"""A process that restores once, as a script does that was started again after a crash: `bench/restored.py NBYTES THREADS`.

The state is built as a script would build it, while what `import holdfast` began goes on; prints one JSON line with the seconds
of `restore()`, of a plain copy out of warm shared memory into the same tensors right after, and sums of the first tensors.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from holdfast import Checkpointer

from .. import states
from ..shared import PlainCopy


def main() -> None:
    """See the module."""
    nbytes, threads = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    state = states.uniform(nbytes)
    ckpt = Checkpointer(**state.parts())
    start = time.perf_counter()
    step = ckpt.restore()
    seconds = time.perf_counter() - start
    sums = [float(t.sum()) for t in state.tensors()[:8]]
    copy = PlainCopy(state.tensors(), Path(os.environ["HOLDFAST_BENCH_FOLDER"]) / "restored", whole=True)
    copy.copy_in()
    bound = [copy.copy_out() for _ in range(3)]
    ckpt.close()
    sys.stdout.write(json.dumps({"step": step, "restore": seconds, "bound": sorted(bound)[1], "sums": sums}) + "\n")
