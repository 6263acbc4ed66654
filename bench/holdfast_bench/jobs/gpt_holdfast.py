"""examples/gpt/train.py as it is, with a note after each snapshot: `holdfast run -n 2 gpt_holdfast.py ...`."""

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
    train.main()
