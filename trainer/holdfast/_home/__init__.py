"""Where snapshots live: shared memory owned by a sidecar (`agent`), or a local directory when there is none (`directory`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from .._state.ahead import folder
from .base import Home


def open_home(environ: Mapping[str, str] = os.environ) -> Home:
    """The home that the environment asks for: `HOLDFAST_SOCKET` names a sidecar's socket, else `HOLDFAST_DIR` a directory."""
    rank, world_size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE is {world_size}: the launcher that set them is at fault")
    if environ.get("HOLDFAST_SOCKET"):
        from .agent import AgentHome

        attempt = int(environ.get("HOLDFAST_ATTEMPT", "1"))
        return AgentHome(environ["HOLDFAST_SOCKET"], rank=rank, world_size=world_size, attempt=attempt)
    from .directory import DirectoryHome

    return DirectoryHome(folder(environ, sys.argv[0] if sys.argv else ""), rank=rank, world_size=world_size)
