"""`python -m holdfast_operator`: wait for the API, start metrics, watch until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from kubernetes.config import ConfigException

from . import handlers, names, web
from .api import Api, ApiError, load_configuration
from .events import EventPoster
from .handlers import Manager
from .metrics import Metrics
from .reconciler import Services
from .settings import Settings, SettingsError, load

log = logging.getLogger("holdfast_operator")


def main() -> int:
    """Run the operator; the process' exit code."""
    try:
        settings, configuration = load(os.environ), load_configuration()
    except (SettingsError, ConfigException) as error:
        sys.stderr.write(f"holdfast-operator: {error}\n")
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    asyncio.run(run(settings, configuration))
    return 0


async def run(settings: Settings, configuration: Any) -> None:
    """All parts of the operator, until SIGTERM or SIGINT."""
    ready, metrics, client = asyncio.Event(), Metrics(), Api(configuration)
    server = await web.serve(metrics.registry, ready, settings.http_port)
    events = EventPoster(client)
    poster = asyncio.create_task(events.run(), name="events")
    manager = Manager(Services(client, settings, events, metrics))
    try:
        await _crd_served(client)
        log.info("watching %s", ", ".join(settings.namespaces) or "all namespaces")
        await handlers.watch(manager, configuration, settings, ready)
    finally:
        ready.clear()
        await manager.close()
        poster.cancel()
        await asyncio.gather(poster, return_exceptions=True)
        await client.close()
        await server.cleanup()


async def _crd_served(client: Api) -> None:
    """Wait until the API server knows TrainingJobs: it may be starting, or the CRD be on its way."""
    said = ""
    while True:
        try:
            found = await client.get(f"/apis/{names.API_VERSION}")
            if any(r.get("name") == names.PLURAL for r in found.get("resources") or []):
                return
            trouble = f"{names.API_VERSION} has no {names.PLURAL}"
        except ApiError as error:
            trouble = f"{names.API_VERSION}: {error}"
        if trouble != said:
            log.warning("waiting for the CRD %s.%s: %s", names.PLURAL, names.GROUP, trouble)
            said = trouble
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
