"""The file system that all nodes share, for ReadWriteMany claims: small, and able to fill up or fail on demand.

An ext4 of its own in a loop-mounted file (a tmpfs where loop devices are not to be had), so that "full" is a real
ENOSPC and harms nothing else. Each volume is a folder of it, mounted into pods through a hostPath.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from holdfast_cluster.api import Api
from holdfast_cluster.config import SHARED_IN_NODE, ClusterError, Paths
from holdfast_cluster.shell import run, wait_until

SIZE_MIB = 4096
TMPFS_MIB = 2048
DEFAULT_VOLUME = "holdfast-shared"
_OPEN = 0o1777
_CLOSED = 0o000


def mount(paths: Paths) -> str:
    """Makes the file system and mounts it in the machine's namespace; returns its kind."""
    paths.shared.mkdir(parents=True, exist_ok=True)
    image = paths.state / "shared.ext4"
    try:
        with image.open("wb") as stream:
            stream.truncate(SIZE_MIB << 20)
        # No blocks reserved for root: root and everybody else see the same "full".
        run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", image])
        # No flushes to the machine's disk: the file goes with the cluster, and unmounting must not wait for that disk.
        run(["mount", "-o", "loop,noatime,barrier=0", image, paths.shared])
        kind = "ext4"
    except ClusterError:
        image.unlink(missing_ok=True)
        run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m,mode=755", "holdfast-shared", paths.shared])
        kind = "tmpfs"
    _volumes(paths).mkdir()
    _make_volume(paths, DEFAULT_VOLUME)
    return kind


def _volumes(paths: Paths) -> Path:
    return paths.shared / "volumes"


def _ballast(paths: Paths) -> Path:
    return paths.shared / "ballast"


def _make_volume(paths: Paths, name: str) -> Path:
    folder = _volumes(paths) / name
    folder.mkdir(exist_ok=True)
    # kubelet applies no fsGroup to a hostPath: open to every user, each file to its owner, as /tmp is.
    folder.chmod(_CLOSED if state(paths) == "off" else _OPEN)
    return folder


def claim(paths: Paths, api: Api, namespace: str, name: str) -> str:
    """Gives a namespace a bound ReadWriteMany claim on a folder of its own and returns the volume's name."""
    volume = f"holdfast-{namespace}-{name}"
    if not _claimed(api, namespace, name):
        # A volume stays tied to the claim that it was first bound to, even to one deleted since: begin anew, empty.
        _delete_volume(api, volume)
        shutil.rmtree(_volumes(paths) / volume, ignore_errors=True)
    _make_volume(paths, volume)
    api.apply(volume_manifest(volume, {"namespace": namespace, "name": name}))
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": {"storage": "2Gi"}},
            },
        }
    )
    return volume


def _claimed(api: Api, namespace: str, name: str) -> bool:
    claims = api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
    return any(item["metadata"]["name"] == name for item in claims)


def _delete_volume(api: Api, volume: str) -> None:
    def there() -> bool:
        return any(item["metadata"]["name"] == volume for item in api.get("/api/v1/persistentvolumes")["items"])

    if there():
        api.request("DELETE", f"/api/v1/persistentvolumes/{volume}")
        wait_until(lambda: not there(), timeout=20, what=f"volume {volume} is not deleted")


def volume_manifest(name: str, claim_ref: dict[str, str] | None = None) -> dict[str, object]:
    """A volume without a storage class; with `claim_ref` it waits for that claim alone."""
    spec: dict[str, object] = {
        "capacity": {"storage": "2Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "hostPath": {"path": str(SHARED_IN_NODE / "volumes" / name), "type": "Directory"},
    }
    if claim_ref:
        spec["claimRef"] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim_ref}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def state(paths: Paths) -> str:
    """`on`, `off` (no user but root can enter a volume) or `full`."""
    if not _volumes(paths).is_dir():
        raise ClusterError("the shared file system is not mounted: run `cluster up`")
    if _volumes(paths).stat().st_mode & 0o777 == 0:
        return "off"
    return "full" if _ballast(paths).exists() else "on"


def switch(paths: Paths, to: str) -> None:
    """`off` and `on` close and open every volume; `full` and `free` take and give back all free space."""
    state(paths)
    if to == "full":
        _fill(_ballast(paths))
    elif to == "free":
        _ballast(paths).unlink(missing_ok=True)
    else:
        for folder in _volumes(paths).iterdir():
            folder.chmod(_CLOSED if to == "off" else _OPEN)
        _volumes(paths).chmod(_CLOSED if to == "off" else 0o755)


def _fill(ballast: Path) -> None:
    """Allocates every free block, in halving pieces, without writing any."""
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        piece = 1 << 30
        while piece >= 4096:
            try:
                os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2
    finally:
        os.close(descriptor)
