"""The environment of a trainer process: torchrun's contract, and what `holdfast.Checkpointer` needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_core.local import Launch


def environment(base: Mapping[str, str], launch: Launch, local_rank: int) -> dict[str, str]:
    """All variables of one process. `base` is the launcher's own environment; what the user set there is kept."""
    rank = launch.first_rank + local_rank
    defaults = {
        "PYTHONUNBUFFERED": "1",  # the last lines before a SIGKILL are the ones that explain it
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's own pool: the warm standby must have no threads when it forks
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }
    if launch.processes > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    if any(launch.arenas[local_rank : local_rank + 1]):
        defaults["HOLDFAST_AHEAD"] = launch.arenas[local_rank]
    fixed = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_WORLD_SIZE": launch.processes,
        "GROUP_RANK": launch.node_rank,
        "GROUP_WORLD_SIZE": launch.nodes,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": launch.world_size,
        "MASTER_ADDR": launch.master_addr,
        "MASTER_PORT": launch.master_port,
        "TORCHELASTIC_RUN_ID": base.get("HOLDFAST_JOB_UID", "holdfast"),
        "TORCHELASTIC_RESTART_COUNT": launch.attempt - 1,
        "HOLDFAST_ATTEMPT": launch.attempt,
    }
    return {**defaults, **base, **{k: str(v) for k, v in fixed.items()}, **launch.env}
