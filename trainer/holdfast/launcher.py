"""`python -m holdfast.launcher -- COMMAND...`: PID 1 of a trainer container. See `_launcher`."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run until the sidecar says Finish or a signal comes; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command or command[0].startswith("-"):
        sys.stderr.write("usage: python -m holdfast.launcher -- COMMAND [ARGUMENT...]\n")
        return 2
    from ._launcher.supervisor import run

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
