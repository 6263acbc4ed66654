"""A real S3 server (versitygw on a folder) at the bridge's address, which pods and the machine reach alike."""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path
from typing import Any

from holdfast_cluster.build import binary
from holdfast_cluster.config import BUCKET, PORTS, ClusterError, Paths, Plan
from holdfast_cluster.daemon import Daemon

REGION = "us-east-1"


def daemon(paths: Paths) -> Daemon:
    """The server's process."""
    return Daemon("s3", paths)


def configure(paths: Paths, plan: Plan) -> None:
    """Makes new credentials and the bucket. The file is for the user alone; tests make Secrets from it."""
    record = {
        "endpoint": plan.s3_url,
        "region": REGION,
        "bucket": BUCKET,
        "access_key": "holdfast" + secrets.token_hex(6),
        "secret_key": secrets.token_hex(24),
    }
    (paths.state / "s3" / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
    paths.s3_file.unlink(missing_ok=True)
    paths.s3_file.touch(mode=0o600)
    paths.s3_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def access(paths: Paths) -> dict[str, Any]:
    """Endpoint, region, bucket and keys; raises ClusterError when there is no cluster."""
    try:
        record: dict[str, Any] = json.loads(paths.s3_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ClusterError("there is no S3 server yet: run `cluster up`") from None
    return record


def start(paths: Paths) -> bool:
    """Starts the server and waits until it listens; False when it runs already. The objects outlive a stop."""
    server = daemon(paths)
    if server.alive():
        return False
    record = access(paths)
    host = str(record["endpoint"]).removeprefix("http://").rpartition(":")[0]
    port = PORTS["s3"]
    env = {"ROOT_ACCESS_KEY": str(record["access_key"]), "ROOT_SECRET_KEY": str(record["secret_key"])}
    argv: list[str | Path] = [binary(paths, "s3"), "--port", f"{host}:{port}", "--region", REGION, "--quiet"]
    server.start([*argv, "posix", paths.state / "s3" / "data"], env)
    server.wait_ready(lambda: listening(host, port), timeout=20)
    return True


def stop(paths: Paths) -> bool:
    """Kills the server at once, as a crash would; False when it was not running."""
    return daemon(paths).stop(grace=0)


def listening(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
