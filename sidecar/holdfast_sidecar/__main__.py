"""`python -m holdfast_sidecar`: reads HOLDFAST_CONFIG and runs until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import sys

from holdfast_core import wire
from holdfast_core.config import CONFIG_ENV, SidecarConfig

from .app import App
from .logs import log_to_stderr
from .tls import TlsError


def main() -> None:
    """Exit code 0 after SIGTERM, 2 if the configuration or the machine does not allow a start."""
    try:
        config = wire.loads(SidecarConfig, os.environ[CONFIG_ENV])
    except KeyError:
        _give_up(f"{CONFIG_ENV} is not set: the operator or `holdfast run` starts the sidecar")
    except wire.WireError as error:
        _give_up(f"{CONFIG_ENV}: {error}")
    log_to_stderr(config.namespace, config.job, config.pod)
    try:
        asyncio.run(_run(config))
    except (OSError, TlsError) as error:
        _give_up(str(error))
    sys.stderr.flush()
    os._exit(0)  # a thread that hangs in a dead file system must not hold up the end of the pod


async def _run(config: SidecarConfig) -> None:
    await App(config).run()


def _give_up(message: str) -> None:
    print(f"holdfast-sidecar: {message}", file=sys.stderr, flush=True)
    os._exit(2)


if __name__ == "__main__":
    main()
