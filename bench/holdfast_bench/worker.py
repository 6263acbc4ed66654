"""The process that holds one measured system: `bench/worker.py TASK SYSTEM`, told what to do over a socket (see `link`).

It runs in the system's own environment, so that it and what it imports must work with any torch >= 2.4 and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import traceback
from typing import Any


def main() -> None:
    """Serve until told to quit, or the driver is gone."""
    task, system = sys.argv[1:3]
    handler = importlib.import_module(f"holdfast_bench.tasks.{task}").Task(system)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ["HOLDFAST_BENCH_SOCKET"])
        with link.makefile("rw", encoding="utf-8") as stream:
            for line in stream:
                request = json.loads(line)
                stream.write(json.dumps(_answer(handler, request)) + "\n")
                stream.flush()
                if request["verb"] == "quit":
                    return


def _answer(handler: Any, request: dict[str, Any]) -> dict[str, Any]:
    verb = request.pop("verb")
    try:
        return getattr(handler, verb)(**request) or {}
    except Exception as error:  # noqa: BLE001 - whatever breaks in a measured system is a line in the table
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
    finally:
        request["verb"] = verb
