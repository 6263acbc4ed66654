"""examples/gpt/train.py as it is, with a note after each snapshot: `holdfast run -n 2 gpt_holdfast.py ...`.

With `--resilient` first, its `main` runs under `holdfast.resilient`: the rank that was not killed keeps its process.
"""

import sys
from typing import Any

import holdfast
import train  # type: ignore[import-not-found, unused-ignore]  # examples/gpt

from holdfast_bench.jobs import stamps


class Stamped(holdfast.Checkpointer):
    """Tells when a step is finished."""

    def snapshot(self, step: int, loss: Any = None) -> bool:
        """See Checkpointer."""
        taken = super().snapshot(step, loss)
        stamps.put(step)
        return taken


if __name__ == "__main__":
    holdfast.Checkpointer = Stamped  # type: ignore[misc]
    if "--resilient" in sys.argv:
        sys.argv.remove("--resilient")
        holdfast.resilient(train.main)
    else:
        train.main()
