"""The launcher's state, and what changes it: orders of the sidecar, exits of processes, signals.

One event loop in one thread. Orders are obeyed by attempt: a later one supersedes, an earlier one is ignored.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from holdfast_core import local
from holdfast_core.config import SHARED_DIR, SOCKET

from .._log import note, redirect
from . import command as commands
from . import keep, line, linux
from .contract import environment
from .output import Console
from .process import RankProcess, Seat
from .sidecar import Sidecar
from .spawn import spawn
from .warm import NoStandby, Standby

DEFAULT_GRACE = 5.0  # seconds between SIGTERM and SIGKILL when the launcher itself is told to end
_LAST_WORDS_SECONDS = 1.0
_ALL_ATTEMPTS = 1 << 63


def run(command: Sequence[str]) -> int:
    """Run until told to finish; returns the launcher's exit code."""
    return asyncio.run(_run(command))


async def _run(command: Sequence[str]) -> int:
    return await Supervisor(command, asyncio.get_running_loop()).main()


def _grace() -> float:
    text = os.environ.get("HOLDFAST_GRACE_SECONDS", "")
    try:
        return max(0.0, float(text or DEFAULT_GRACE))
    except ValueError:
        note(f"HOLDFAST_GRACE_SECONDS={text!r} is not a number of seconds: taking {DEFAULT_GRACE:.0f}")
        return DEFAULT_GRACE


def _names(ranks: Iterable[RankProcess]) -> str:
    return "rank " + ", ".join(str(r.seat.rank) for r in ranks)


def _started(kept: Mapping[int, RankProcess], ways: Sequence[str]) -> str:
    """What became of the processes, in words."""
    started = f"started {len(ways)} process(es) {'; '.join(sorted({*ways}))}"
    if not kept:
        return started
    return f"kept {_names(kept.values())}" + (f", {started}" if ways else "")


def _signal(ranks: Iterable[RankProcess], number: int) -> None:
    for rank in ranks:
        rank.send(number)


class Supervisor:
    """See the module."""

    def __init__(self, command: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self._command = command
        self._loop = loop
        self._console = Console(loop)
        path = os.environ.get("HOLDFAST_SOCKET") or os.path.join(SHARED_DIR, SOCKET)
        os.environ.setdefault("HOLDFAST_SOCKET", path)
        self._sidecar = Sidecar(path, self.hello, self.obey)
        parsed = commands.parse(command, os.environ.get("PATH"))
        self._standby = Standby(loop, self._console, parsed, self._sidecar.changed)
        self._attempt = 0  # of the processes below
        self._barred = 0  # no attempt up to this one is started any more
        self._ranks: list[RankProcess] = []
        self._news = asyncio.Event()  # of processes
        self._keep_seconds = keep.bound()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit: asyncio.Future[int] = loop.create_future()

    async def main(self) -> int:
        """Serve; returns the exit code."""
        redirect(lambda line: self._console.write(line.encode()))
        linux.become_subreaper()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._standby.start()
        self._start(self._sidecar.run())
        code = await self._exit
        await asyncio.sleep(0)  # the last Hello
        await self._shut_down()
        return code

    def hello(self) -> local.Hello:
        """The whole state."""
        processes = tuple(r.report() for r in self._ranks)
        return local.Hello(os.getpid(), self._attempt, processes, self._standby.status)

    def obey(self, message: local.Message) -> None:
        """An order of the sidecar."""
        if isinstance(message, local.Launch):
            if message.attempt > max(self._attempt, self._barred):
                self._barred = message.attempt - 1
                self._start(self._launch(message))
            else:
                self._sidecar.changed()  # it asks again because it does not know: tell it
        elif isinstance(message, local.Stop):
            self._barred = max(self._barred, message.attempt)
            self._start(self._stop(message.attempt, message.grace_seconds, keeping=message.grace_seconds <= 0))
        elif isinstance(message, local.Finish):
            self._start(self._finish(message.exit_code, DEFAULT_GRACE))
        else:
            note(f"ignoring a {type(message).__name__} from the sidecar: mixed versions?")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._exit.done():
            note(f"internal error, giving up: {task.exception()!r}")
            self._exit.set_result(70)

    async def _launch(self, launch: local.Launch) -> None:
        await self._stop(launch.attempt - 1, DEFAULT_GRACE, keeping=True)
        if sum(r.alive for r in self._ranks) < launch.processes:
            await self._standby.settle()
        async with self._turn:
            if launch.attempt <= max(self._attempt, self._barred):
                return  # overtaken meanwhile
            start = time.monotonic()
            kept = await keep.resume(self._ranks, launch, self._until, self._keep_seconds)
            self._attempt = launch.attempt
            self._ranks = [kept.get(i) or self._new_rank(launch, i) for i in range(launch.processes)]
            ways = [await self._start_rank(rank) for rank in self._ranks if not rank.pid]
            note(f"attempt {launch.attempt}: {_started(kept, ways)} in {time.monotonic() - start:.2f} s")
            self._changed()

    def _new_rank(self, launch: local.Launch, local_rank: int) -> RankProcess:
        env = environment(os.environ, launch, local_rank)
        return RankProcess(self._loop, self._console, Seat.of(launch, local_rank), env, self._changed)

    async def _start_rank(self, rank: RankProcess) -> str:
        fds = rank.stdout.write_end, rank.stderr.write_end, rank.line.remote
        try:
            pid, way = await self._standby.spawn(rank.env, *fds), "from the warm standby"
        except NoStandby as reason:
            env = {**rank.env, line.ENV: str(rank.line.remote)}
            pid, way = spawn(self._command, env, *fds[:2], keep=fds[2:]), f"cold ({reason})"
        rank.started(pid)
        return way

    async def _stop(self, attempt: int, grace: float, *, keeping: bool) -> None:
        """End the part of all processes in attempts up to this one. Returns when it is over, or they cannot be killed.

        `keeping`: those that can take part in a later attempt live on, parked.
        """
        async with self._turn:
            if self._attempt <= attempt and any(r.busy if keeping else r.alive for r in self._ranks):
                await self._end_all(grace, keeping)
        self._changed()  # one that parked by itself may not have been told yet

    async def _end_all(self, grace: float, keeping: bool) -> None:
        asked = [r for r in self._ranks if keeping and self._keep_seconds > 0 and r.park()]
        others = [r for r in self._alive() if r not in asked and not (keeping and r.parked)]
        waiting = f", keeping {_names(asked)}" if asked else ""
        note(f"attempt {self._attempt}: stopping {len(others)} process(es){waiting}")
        if grace > 0 and others:
            _signal(others, signal.SIGTERM)
            await self._until(lambda: not any(r.alive for r in others), grace)
            if any(r.alive for r in others):
                note(f"SIGTERM was not obeyed within {grace:.3g} s: SIGKILL")
        await keep.kill(others, self._until)
        await keep.parked(asked, self._until, self._keep_seconds)
        self._kill_orphans()
        if left := [r for r in self._alive() if not (keeping and r.parked)]:
            note(f"pid {left[0].pid} survives SIGKILL: it hangs in the kernel, this node needs attention")

    def _alive(self) -> list[RankProcess]:
        return [r for r in self._ranks if r.alive]

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for what processes do, at most so long."""
        deadline = self._loop.time() + seconds
        while not condition() and (left := deadline - self._loop.time()) > 0:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    def _changed(self) -> None:
        self._news.set()
        self._sidecar.changed()

    def _kill_orphans(self) -> None:
        """Whatever left its process group: as the subreaper, we are its parent now."""
        known = {self._standby.pid, *(r.pid for r in self._alive())}
        for pid in linux.children() - known:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Collect every child that has ended: ranks, the standby, orphans."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            self._reap_one(ended.si_pid)

    def _reap_one(self, pid: int) -> None:
        rank = next((r for r in self._ranks if r.pid == pid and r.alive), None)
        if rank is not None:
            rank.send(signal.SIGKILL)  # its workers; while it is a zombie, the group's id cannot be another's
        _, status = os.waitpid(pid, 0)
        if rank is not None:
            rank.ended(status)
            note(rank.describe_end())
        elif pid == self._standby.pid:
            self._standby.ended()
        else:
            return
        self._changed()

    def _on_signal(self, number: int) -> None:
        if self._barred == _ALL_ATTEMPTS:
            _signal(self._alive(), signal.SIGKILL)  # asked twice
            return
        note(f"{signal.Signals(number).name}: stopping")
        self._barred = _ALL_ATTEMPTS
        self._start(self._finish(128 + number, _grace()))

    async def _finish(self, code: int, grace: float) -> None:
        self._barred = _ALL_ATTEMPTS
        await self._stop(_ALL_ATTEMPTS, grace, keeping=False)
        if not self._exit.done():
            self._exit.set_result(code)

    async def _shut_down(self) -> None:
        await self._console.drained(_LAST_WORDS_SECONDS)
        for task in self._tasks:
            task.cancel()
        self._loop.remove_signal_handler(signal.SIGCHLD)
        self._standby.kill()
        self._kill_orphans()
