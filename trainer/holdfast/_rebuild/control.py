"""The process's end of the line to its launcher (see `_launcher.line`), and how an attempt is interrupted.

One thread reads the line. Asked to park, it makes the main thread raise `Interrupted` by a signal, which also ends sleeps and
waits for locks. Where the main thread does not come out by itself it calls `release` with 0, 1, 2, ...: collectives do not look
at signals.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import threading
import types
from collections.abc import Callable
from typing import Any

from .._launcher import line
from ..errors import Interrupted

SIGNAL = signal.SIGRTMIN + 11  # nobody else's: SIGUSR1 and SIGUSR2 are taken by schedulers and users
THREAD = "holdfast-control"
_WELCOME_SECONDS = 2.0
_PATIENCE = 0.2  # seconds in which most code comes out by itself
_AGAIN = 0.3


class Control:
    """One for the life of the process. `inside` says whether the function runs, `interrupted` whether it is to end."""

    def __init__(self, connection: socket.socket, release: Callable[[int], None]) -> None:
        self._socket = connection
        self._release = release
        self._main = threading.main_thread()
        self._words: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._outside = threading.Event()
        self.inside = False
        self.interrupted = False
        threading.Thread(target=self._listen, name=THREAD, daemon=True).start()

    def say(self, say: str, **more: Any) -> None:
        """Tell the launcher; it is our parent: without it we die."""
        self._socket.send(json.dumps({"say": say, **more}).encode())

    def join(self) -> bool:
        """Ask to be kept; whether the launcher agrees."""
        self.say("joined", pid=os.getpid())
        try:
            return bool(self._words.get(timeout=_WELCOME_SECONDS)["say"] == "welcome")
        except queue.Empty:
            return False

    def parked(self, code: int | None) -> dict[str, str | None]:
        """Wait for the next attempt, for as long as it takes; the variables that differ in it."""
        self.say("parked", code=code)
        env: dict[str, str | None] = self._words.get()["env"]
        return env

    def enter(self) -> None:
        """The function may be interrupted from here on."""
        signal.signal(SIGNAL, self._raise)
        self.interrupted = False
        self._outside.clear()
        self.inside = True

    def leave(self) -> None:
        """Not any more."""
        self.inside = False
        self._outside.set()

    def _raise(self, number: int, frame: types.FrameType | None) -> None:
        if self.inside:
            raise Interrupted("a new attempt begins: holdfast.resilient calls the function again")

    def _listen(self) -> None:
        while data := self._receive():
            word = json.loads(data)
            if word["say"] == "park":
                self._interrupt()
            else:
                self._words.put(word)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(line.MAX_PACKET)
        except OSError:
            return b""

    def _interrupt(self) -> None:
        """Until it is outside; how long that may take is the launcher's business."""
        if not self.inside:
            return  # it left by itself, and has said so
        self.interrupted = True
        for number in itertools.count():
            if not self.inside:
                return
            signal.pthread_kill(self._main.ident or 0, SIGNAL)
            if self._outside.wait(_AGAIN if number else _PATIENCE):
                return
            self._release(number)


def adopt(release: Callable[[int], None]) -> Control | None:
    """The line that the launcher gave this process; None if there is none, or it is not meant for us."""
    number = os.environ.pop(line.ENV, "")
    if not number.isdigit() or threading.current_thread() is not threading.main_thread():
        return None
    try:
        connection = socket.socket(fileno=int(number))
    except OSError:  # a descriptor that our parent did not pass on
        return None
    if connection.family != socket.AF_UNIX or connection.type != socket.SOCK_SEQPACKET:
        connection.detach()  # it did not, and the number is another's
        return None
    connection.set_inheritable(False)
    return Control(connection, release)
