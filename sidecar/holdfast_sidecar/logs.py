"""Log lines: one line each on stderr, with the job, the pod and the attempt."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

_NOISY = ("aiohttp", "asyncio", "botocore", "aiobotocore", "s3fs", "fsspec")
_FORMAT = "%(asctime)s %(levelname)s {where} attempt %(attempt)d: %(message)s"


class Where(logging.Filter):
    """Adds the current attempt to each record."""

    def __init__(self) -> None:
        super().__init__()
        self.attempt: Callable[[], int] = lambda: 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        record.attempt = self.attempt()
        return True


WHERE = Where()


def log_to_stderr(namespace: str, job: str, pod: str) -> None:
    """Set up logging for the process."""
    where = f"{namespace}/{job} {pod}".replace("%", "%%")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_FORMAT.replace("{where}", where), force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(WHERE)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
