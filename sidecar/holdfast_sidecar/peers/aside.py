"""Work that can wait, in threads that let others go first."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

NICENESS = 10  # a tenth of a processor that somebody else wants too: less would leave steps unprotected on a busy node


def step_aside() -> None:
    """From here on, training and our own event loop go before this thread, and it interrupts nobody when it wakes up.

    Niceness counts among the threads of a container, and between processes that are in none; between containers it is the CPU
    requests that count, but not interrupting (SCHED_BATCH) works there too.
    """
    thread = threading.get_native_id()
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
