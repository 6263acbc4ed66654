"""The facade of the peers: what the rest of the sidecar asks for."""

from __future__ import annotations

import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from holdfast_core.config import SidecarConfig
from holdfast_core.protection import least_rate
from holdfast_core.timeline import Copy

from ..arenas import Arenas
from .aside import step_aside
from .channel import Access
from .client import STALL, Peer
from .encode import Connect, Encoder, Task
from .holdings import Holdings
from .idle import Idle
from .parity import ParityStore
from .place import PeerPlace
from .probes import Probes
from .rebuild import PATIENCE, Heard, Rebuilder, Wanted
from .server import PeerServer
from .stop import Stop, in_thread

_LOOK = 0.05  # seconds


class Peers:
    """One a sidecar. `attempt` tells the one that is on; `corrupt(rank, copy, text)` hears, in any thread, of a snapshot that
    was forgotten because its bytes turned out to be wrong when a peer asked for them."""

    def __init__(
        self, config: SidecarConfig, arenas: Arenas, attempt: Callable[[], int], corrupt: Callable[[int, Copy, str], None]
    ) -> None:
        self._config, self._arenas, self._attempt, self._corrupt = config, arenas, attempt, corrupt
        self.parity = ParityStore(config, arenas)
        self.stall = STALL
        self.patience = PATIENCE
        self._access: Access | None = None
        self._server: PeerServer | None = None
        self._probes = Probes()
        self._idle = Idle()
        self._building: dict[int, threading.Lock] = defaultdict(threading.Lock)

    def start(self) -> None:
        """Take over the parity that is there, and serve, unless there are no certificates. Raises OSError or TlsError."""
        self.parity.adopt()
        if not self._config.tls_dir:
            return
        self._access = Access(self._config)
        holdings = Holdings(self._arenas, self.parity, self._corrupt)
        self._server = PeerServer(self._config, self._access, holdings, self._attempt)
        self._server.start()

    def assume(self, config: SidecarConfig) -> None:
        """A spare gets its ranks."""
        self._config = config
        self.parity.assume(config)

    @property
    def contexts(self) -> list[ssl.SSLContext]:
        """Those in use, for whoever follows the certificate files (`tls.follow`)."""
        return self._access.contexts if self._access is not None else []

    def close(self) -> None:
        """Serve and look no more; parity stays."""
        self._probes.close()
        self._idle.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    async def encode(
        self, rank: int, copy: Copy, group: tuple[int, ...], m: int, members: Sequence[PeerPlace], base: Copy | None = None
    ) -> int:
        """Build the rank's parity of a copy; returns the bytes received, 0 if it is whole already. `base` is a copy
        whose slots and parity are still there. Raises PeerError, ArenaError. Cancelling it stops it at the next piece."""
        task, attempt = Task(rank, copy, group, m, tuple(members), base), self._attempt()
        return await in_thread(f"encode-{rank}", lambda stop: self._encode(task, attempt, stop))

    def _encode(self, task: Task, attempt: int, stop: Stop) -> int:
        step_aside()
        with _Turn(self._building[task.rank], stop):
            least = least_rate(self._config.peers.bandwidth, self._config.processes * max(1, len(task.group) - 1))
            return Encoder(self._arenas, self.parity, self._connecting(attempt, least), task, stop).run()

    async def rebuild(
        self, rank: int, copy: Copy, members: Sequence[PeerPlace], attempt: int, heard: Heard = lambda _: None
    ) -> int:
        """Bring a lost rank's snapshot back into a slot of this pod; returns the bytes received, and `heard` hears of them, in
        some threads, as they come. Raises PeerError, ArenaError, CorruptShard; then no slot is sealed."""

        def work(stop: Stop) -> int:
            with _Turn(self._building[rank], stop):
                wanted = Wanted(rank, copy, attempt, tuple(members))
                return Rebuilder(self._arenas, self._connecting(attempt), wanted, stop, heard, self.patience).run()

        return await in_thread(f"rebuild-{rank}", work)

    def _connecting(self, attempt: int, least: float = 0.0) -> Connect:
        if self._access is None:
            raise RuntimeError("peers need certificates: tls_dir is empty")
        access, uid = self._access, self._config.job_uid
        return lambda place, stop: Peer(place, access, uid, attempt, stop, self.stall, self._idle, least)

    def watch(self, members: Sequence[PeerPlace]) -> None:
        """Look whether these pods answer, from now on. Needs a running event loop."""
        self._idle.clear()
        self._probes.watch(members)

    def silent(self) -> dict[int, float]:
        """Watched pods that have not answered for a while: seconds, by index."""
        return self._probes.silent()


class _Turn:
    """A lock that is not waited for once nobody needs it any more: the one before us may be given up, but not gone yet."""

    def __init__(self, lock: threading.Lock, stop: Stop) -> None:
        self._lock, self._stop = lock, stop

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=_LOOK):
            self._stop.check()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
