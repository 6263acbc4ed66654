"""What a sidecar is told at its start: one JSON document in `HOLDFAST_CONFIG`, built by the operator or `holdfast run`."""

from __future__ import annotations

from dataclasses import dataclass, field

CONFIG_ENV = "HOLDFAST_CONFIG"
API_PORT = 7470
METRICS_PORT = 7471
PEER_PORT = 7472
SHARED_DIR = "/holdfast/shared"  # memory-backed volume of the pod: arena/, run/, lib/
ARENA_DIR = "arena"
PARITY_DIR = "parity"
SOCKET = "run/agent.sock"
LIB_DIR = "lib"  # the injected packages: PYTHONPATH of the trainer
TLS_DIR = "/holdfast/tls"
STORES_DIR = "/holdfast/stores"  # a claim is mounted at STORES_DIR/<store name>
TLS_NAME = "sidecar.holdfast.internal"  # DNS name in the job's certificate


@dataclass(frozen=True)
class StoreConfig:
    """A durable level. `url` is file:// or s3://; credentials are in the environment, prefixed by `env_prefix`."""

    name: str
    url: str
    every_seconds: float | None = None
    every_steps: int | None = None
    keep: int = 3
    env_prefix: str = ""


@dataclass(frozen=True)
class PeersConfig:
    """Copies in peers' RAM: pods to a group, how many of them may be lost (0: off), bytes a second that a pod may send (0: no
    limit), and whether what it sends is encrypted. Without encryption the bytes are checked, but can be read on the way."""

    group_size: int = 4
    parity: int = 1
    bandwidth: int = 0
    encrypted: bool = True


@dataclass(frozen=True)
class SidecarConfig:
    """`slot_bytes` 0: grow with the trainer's first plan, up to `memory_limit` bytes (0: the cgroup's).

    A spare has index -1 and no ranks until a prepare command names its pod as a member.
    """

    job_uid: str
    job: str
    namespace: str
    pod: str
    index: int
    first_rank: int
    processes: int
    world_size: int
    slots: int = 3
    slot_bytes: int = 0
    memory_limit: int = 0
    stores: tuple[StoreConfig, ...] = ()
    shared_dir: str = SHARED_DIR
    tls_dir: str = TLS_DIR  # empty: no TLS, and the API listens on the Unix socket shared_dir/run/api.sock
    api_port: int = API_PORT
    metrics_port: int = METRICS_PORT  # 0: none
    peers: PeersConfig = field(default_factory=lambda: PeersConfig(parity=0))
    peer_port: int = PEER_PORT
    trace: bool = False  # log what the protocol does, for replays against the model
    drain_seconds: float = 20.0  # how long a SIGTERM or `finish` waits for uploads
