"""What a sidecar is told at its start: one JSON document in `HOLDFAST_CONFIG`, built by the operator or `holdfast run`."""

from __future__ import annotations

from dataclasses import dataclass

CONFIG_ENV = "HOLDFAST_CONFIG"
API_PORT = 7470
METRICS_PORT = 7471
SHARED_DIR = "/holdfast/shared"  # memory-backed volume of the pod: arena/, run/, lib/
ARENA_DIR = "arena"
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
class SidecarConfig:
    """`slot_bytes` 0: grow with the trainer's first plan, up to `memory_limit` bytes (0: the cgroup's)."""

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
    drain_seconds: float = 20.0  # how long a SIGTERM or `finish` waits for uploads
