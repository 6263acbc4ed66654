"""A cold start: fork and exec, in a session of its own, bound to the life of the launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from . import linux

NOT_FOUND = 127
NOT_EXECUTABLE = 126
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these, and ignored signals stay so through exec


def spawn(command: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int, keep: Sequence[int] = ()) -> int:
    """Start a command and return its pid, which is its process group's id too. `keep`: descriptors that it inherits.

    A command that cannot be started ends with 127 or 126, and says why on its stderr.
    """
    parent = os.getpid()
    group_read, group_write = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the child still has our handlers
    try:
        pid = os.fork()
        if pid == 0:
            _child(command, env, stdout, stderr, keep, parent, group_write)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(group_write)
    os.read(group_read, 1)  # its process group exists from here on, and can be signalled
    os.close(group_read)
    return pid


def _child(
    command: Sequence[str],
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    keep: Sequence[int],
    parent: int,
    group_write: int,
) -> NoReturn:
    code = NOT_EXECUTABLE
    try:
        os.setsid()
        os.write(group_write, b"s")
        _prepare(stdout, stderr, keep, parent)
        os.execvpe(command[0], list(command), dict(env))  # noqa: S606 - running the user's command is its purpose
    except FileNotFoundError:
        code = NOT_FOUND
        _say(f"holdfast: cannot start {command[0]!r}: no such file; check the trainer container's command and image\n")
    except OSError as error:
        _say(f"holdfast: cannot start {command[0]!r}: {error.strerror}; is it executable?\n")
    finally:
        os._exit(code)


def _prepare(stdout: int, stderr: int, keep: Sequence[int], parent: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *_RESTORED):
        signal.signal(number, signal.SIG_DFL)
    linux.die_with(parent)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in keep:
        os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _say(text: str) -> None:
    os.write(2, text.encode())
