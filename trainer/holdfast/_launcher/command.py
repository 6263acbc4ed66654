"""Which commands a warm standby can run: plain `python [-u] script.py ...` and `python -m module ...`. Pure, but for PATH."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

_PYTHON = re.compile(r"^python(3(\.\d+)?)?$")


@dataclass(frozen=True)
class PythonCommand:
    """A command that a preloaded interpreter can take over. `target` is a script's path or a module's name."""

    interpreter: str
    target: str
    is_module: bool
    arguments: tuple[str, ...]
    unbuffered: bool = False


def parse(command: Sequence[str], path: str | None = None) -> PythonCommand | str:
    """The parsed command, or the reason why it can only be started cold. `path` is PATH."""
    if not _PYTHON.match(command[0].rpartition("/")[2]):
        return f"{command[0]} is not a Python interpreter"
    interpreter = shutil.which(command[0], path=path)
    if interpreter is None:
        return f"{command[0]} is not found"
    rest, unbuffered = list(command[1:]), False
    while rest and rest[0] == "-u":
        unbuffered = True
        rest.pop(0)
    is_module = rest[:1] == ["-m"]
    if is_module:
        rest.pop(0)
    if not rest or rest[0].startswith("-"):
        return f"the option {rest[0]} needs an interpreter of its own" if rest else "no script is given"
    return PythonCommand(interpreter, rest[0], is_module, tuple(rest[1:]), unbuffered)
