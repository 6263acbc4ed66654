"""One contract for every kind of store, and checkpoints kept in each."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holdfast_core import arena, durable, wire
from holdfast_core.arena import ArenaError, ArenaHeader
from holdfast_core.config import StoreConfig
from holdfast_core.durable import StepManifest
from holdfast_core.manifest import CorruptShard, SlotManifest
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar.slots import ArenaFile, SlotView
from holdfast_sidecar.stores.base import NotFound, Store, StoreError
from holdfast_sidecar.stores.filesystem import FileStore
from holdfast_sidecar.stores.lane import Pulse
from holdfast_sidecar.stores.level import make_store
from holdfast_sidecar.stores.steps import Fenced, Steps

from .conftest import S3Server
from .harness import UID, tmpfs
from .images import content, seal_content

MIB = 1 << 20


@pytest.fixture(params=["file", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.slow])])
def store(request: pytest.FixtureRequest, folder: Path) -> Store:
    if request.param == "file":
        return make_store(StoreConfig("pvc", f"file://{folder}/deep/pvc"), {})
    server: S3Server = request.getfixturevalue("s3_server")
    config = StoreConfig("s3", "s3://holdfast/team/gpt", env_prefix="X_")
    return make_store(config, server.environment("X_"))


# --- files


def test_files_come_back_as_they_were_written(store: Store) -> None:
    store.probe(1)
    large = os.urandom(40 * MIB + 17)  # several parts of a multipart upload
    store.write("a/large", (large[i : i + 3 * MIB] for i in range(0, len(large), 3 * MIB)))
    store.write("a/small", [b"one", memoryview(b"two")])
    store.write("empty", [])
    assert store.read("a/small", 100) == b"onetwo"
    assert store.read("empty", 100) == b""
    assert store.listing("a") == {"large": len(large), "small": 6}
    assert store.listing("") == {"a": -1, "empty": 0}
    assert store.listing("missing") == {}
    with store.open("a/large") as reader:
        back = b"".join(iter(lambda: reader.read(7 * MIB), b""))
    assert back == large


def test_a_file_is_replaced_as_a_whole_or_not_at_all(store: Store) -> None:
    store.write("x/f", [b"old"])

    def broken(pieces: int) -> Iterator[bytes]:
        for _ in range(pieces):
            yield bytes(17 * MIB)
        raise CorruptShard("in the middle")

    for pieces in (0, 1, 3):
        with pytest.raises(CorruptShard):
            store.write("x/f", broken(pieces))
    assert store.read("x/f", 10) == b"old"
    assert store.listing("x") == {"f": 3}, "nothing is left behind"
    store.write("x/f", [b"new"])
    assert store.read("x/f", 10) == b"new"


def test_what_is_missing_or_too_large_is_an_error(store: Store) -> None:
    store.write("f", [b"12345"])
    with pytest.raises(NotFound):
        store.read("nope/f", 10)
    with pytest.raises(NotFound), store.open("nope") as reader:
        reader.read(1)
    with pytest.raises(StoreError, match="larger"):
        store.read("f", 4)


def test_delete_removes_files_and_folders(store: Store) -> None:
    for name in ("d/a", "d/b", "e/c"):
        store.write(name, [b"x"])
    store.delete("d")
    store.delete("e/c")
    store.delete("never")
    assert store.listing("d") == {}
    assert store.listing("e") == {}


# --- checkpoints


class Shelf:
    """Slots with snapshots, for writing shards, and memory for reading them back."""

    def __init__(self, folder: Path, size: int = 9 * MIB + 5) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(exist_ok=True)

    def slot(self, rank: int, step: int, attempt: int = 1, world: int = 2) -> SlotView:
        header = ArenaHeader(UID, rank, world, 2, arena.slot_bytes_for(self.size + 4096, 8192))
        file = ArenaFile.create(self.folder / f"r{rank}s{step}a{attempt}", header, attempt)
        seal_content(file.buf, 0, rank, world, step, attempt, self.size)
        return SlotView(file, arena.read_slot(file.buf, 0))


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(folder / "shelf")


def save(steps: Steps, shelf: Shelf, step: int, attempt: int = 1, by: Resume | None = None) -> Copy:
    copy = Copy(step, attempt)
    shards = tuple(steps.write_shard(copy, shelf.slot(rank, step, attempt), Pulse()) for rank in (0, 1))
    resume = by or Resume(attempt, -1)
    manifest = StepManifest(UID, step, attempt, 2, "2026-01-01T00:00:00+00:00", shards)
    steps.commit(manifest, resume, (resume,), lambda: True)
    return copy


def fetch(steps: Steps, copy: Copy, rank: int) -> bytes:
    memory: list[bytearray] = []

    def allocate(manifest: SlotManifest) -> memoryview:
        memory.append(bytearray(manifest.data_bytes))
        return memoryview(memory[0])

    manifest = steps.fetch_shard(copy, rank, allocate, Pulse())
    return b"".join(bytes(memory[0][e.offset : e.offset + e.nbytes]) for e in manifest.entries)


@pytest.fixture
def steps(store: Store) -> Steps:
    return Steps(store, 2)


def test_a_committed_step_comes_back_byte_for_byte(steps: Steps, shelf: Shelf) -> None:
    copy = save(steps, shelf, 7)
    found = steps.inventory("x")
    assert (found.copies, found.history, found.unusable) == ((copy,), (Resume(1, -1),), ())
    for rank in (0, 1):
        assert fetch(steps, copy, rank) == content(rank, 7, shelf.size)


def test_a_step_without_a_manifest_does_not_exist(steps: Steps, shelf: Shelf) -> None:
    steps.write_shard(Copy(3, 1), shelf.slot(0, 3), Pulse())
    assert steps.inventory("x").copies == ()
    with pytest.raises(NotFound):
        steps.manifest(Copy(3, 1))


def test_retention_keeps_the_newest_and_sweeps_leftovers(steps: Steps, shelf: Shelf) -> None:
    shelf.size = 1000
    for step in (1, 2, 3):
        save(steps, shelf, step)
    steps.write_shard(Copy(2, 4), shelf.slot(0, 2, 4), Pulse())  # of a later attempt: not ours to judge
    steps.write_shard(Copy(0, 1), shelf.slot(0, 0), Pulse())  # a failed upload
    newest = save(steps, shelf, 4)
    assert steps.tidy(newest, (Resume(1, -1),), 2, 1) == (Copy(1, 1), Copy(2, 1))
    names = {n for n in steps.store.listing("") if n.startswith("step-")}
    assert names == {durable.step_dir(c) for c in (Copy(3, 1), Copy(4, 1), Copy(2, 4))}


def test_a_step_of_an_abandoned_timeline_is_given_up(steps: Steps, shelf: Shelf) -> None:
    shelf.size = 1000
    save(steps, shelf, 5)
    save(steps, shelf, 9)
    newest = save(steps, shelf, 6, 2, by=Resume(2, 5))
    assert Copy(9, 1) in steps.tidy(newest, (Resume(2, 5),), 5, 2)


def test_a_zombie_cannot_commit(steps: Steps, shelf: Shelf) -> None:
    shelf.size = 1000
    save(steps, shelf, 5, 2, by=Resume(2, -1))
    with pytest.raises(Fenced, match="attempt 2 is recorded"):
        save(steps, shelf, 6, 1)
    with pytest.raises(Fenced, match="another attempt 2"):
        save(steps, shelf, 6, 2, by=Resume(2, 3))
    shard = steps.write_shard(Copy(8, 3), shelf.slot(0, 8, 3), Pulse())
    manifest = StepManifest(UID, 8, 3, 2, "", (shard, dataclasses.replace(shard, rank=1)))
    with pytest.raises(Fenced, match="is over"):
        steps.commit(manifest, Resume(3, 5), (), lambda: False)
    assert steps.inventory("x").copies == (Copy(5, 2),)


# --- lying bytes

Lie = Callable[[bytes], bytes]
FLIP: dict[str, Lie] = {
    "cut short": lambda b: b[: len(b) // 2],
    "empty": lambda b: b"",
    "one byte more": lambda b: b + b"x",
    "bit in the length": lambda b: bytes([b[0] ^ 1]) + b[1:],
    "bit in the header": lambda b: b[:40] + bytes([b[40] ^ 4]) + b[41:],
    "bit in the data": lambda b: b[:-9] + bytes([b[-9] ^ 128]) + b[-8:],
    "garbage": lambda b: os.urandom(len(b)),
}


@pytest.mark.parametrize("lie", FLIP)
def test_a_shard_that_lies_is_never_believed(folder: Path, lie: str) -> None:
    steps, shelf = Steps(FileStore("pvc", folder / "pvc"), 2), Shelf(folder / "shelf", 5000)
    copy = save(steps, shelf, 7)
    path = folder / "pvc" / durable.step_dir(copy) / durable.shard_file(1)
    path.write_bytes(FLIP[lie](path.read_bytes()))
    with pytest.raises(CorruptShard, match=r"rank-00001|step-00000007"):
        fetch(steps, copy, 1)
    assert fetch(steps, copy, 0) == content(0, 7, 5000)


def test_a_missing_shard_makes_the_step_unusable(folder: Path) -> None:
    steps, shelf = Steps(FileStore("pvc", folder / "pvc"), 2), Shelf(folder / "shelf", 5000)
    copy = save(steps, shelf, 7)
    path = folder / "pvc" / durable.step_dir(copy) / durable.shard_file(1)
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes, not" in steps.inventory("x").unusable[0]
    path.unlink()
    found = steps.inventory("x")
    assert found.copies == ()
    assert "rank-00001.safetensors is missing" in found.unusable[0]
    with pytest.raises(CorruptShard, match="missing"):
        fetch(steps, copy, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: b"{not json", "not JSON"),
        (lambda m: b"[]", "expected an object"),
        (lambda m: wire.dumps(dataclasses.replace(m, step=8)), "its folder says otherwise"),
        (lambda m: wire.dumps(dataclasses.replace(m, world_size=3)), "ranks"),
        (lambda m: wire.dumps(dataclasses.replace(m, shards=m.shards[:1])), "does not list every rank"),
        (lambda m: wire.dumps(dataclasses.replace(m, shards=(m.shards[0], dataclasses.replace(m.shards[1], file="../x")))),
         "outside"),
    ],
)  # fmt: skip
def test_a_manifest_that_lies_is_never_believed(folder: Path, change: Callable[[StepManifest], bytes], says: str) -> None:
    steps, shelf = Steps(FileStore("pvc", folder / "pvc"), 2), Shelf(folder / "shelf", 100)
    copy = save(steps, shelf, 7)
    (folder / "pvc" / durable.step_dir(copy) / "manifest.json").write_bytes(change(steps.manifest(copy)))
    found = steps.inventory("x")
    assert found.copies == ()
    assert says in found.unusable[0]
    with pytest.raises(CorruptShard):
        fetch(steps, copy, 0)


def test_garbage_among_the_names_is_passed_over(folder: Path) -> None:
    steps, shelf = Steps(FileStore("pvc", folder / "pvc"), 2), Shelf(folder / "shelf", 100)
    copy = save(steps, shelf, 7)
    root = folder / "pvc"
    for name in ("step-7.a1", "step-00000009.a0001", "attempts/x.json", "attempts/00000009.json", "lost+found/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\xff\x00")
    (root / "attempts/00000008.json").write_bytes(wire.dumps(Resume(99, 1)))
    (root / "step-00000008.a0001").symlink_to("/etc")
    found = steps.inventory("x")
    assert (found.copies, found.history, found.unusable) == ((copy,), (Resume(1, -1),), ())


def test_a_corrupt_or_reused_slot_is_never_uploaded(folder: Path) -> None:
    steps, shelf = Steps(FileStore("pvc", folder / "pvc"), 2), Shelf(folder / "shelf", 5000)
    view = shelf.slot(0, 7)
    view.data()[3000] ^= 1
    with pytest.raises(CorruptShard, match="checksum mismatch"):
        steps.write_shard(Copy(7, 1), view, Pulse())
    seal_content(view.file.buf, 0, 0, 2, 8, 1, 5000)
    with pytest.raises(ArenaError, match="reused"):
        steps.write_shard(Copy(7, 1), view, Pulse())
    os.truncate(view.file.path, 100)
    with pytest.raises(ArenaError, match="cut short"):
        steps.write_shard(Copy(7, 1), view, Pulse())
    assert steps.store.listing(durable.step_dir(Copy(7, 1))) == {}


# --- stores in trouble


def test_a_full_volume_says_so_and_is_clean_afterwards(folder: Path) -> None:
    with tmpfs(folder / "tiny", "1m") as mount:
        steps, shelf = Steps(FileStore("pvc", mount / "gpt"), 2), Shelf(folder / "shelf", 2 * MIB)
        steps.store.probe(1)
        with pytest.raises(StoreError, match=r"no space left.*enlarge"):
            steps.write_shard(Copy(7, 1), shelf.slot(0, 7), Pulse())
        assert steps.store.listing(durable.step_dir(Copy(7, 1))) == {}
        with pytest.raises(StoreError, match="MiB needed"):
            steps.store.probe(2 * MIB)
        shelf.size = 1000
        save(steps, shelf, 8)


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EACCES, "permission"), (errno.EROFS, "read-only"), (errno.EIO, "input/output"), (errno.ESTALE, "stale")],
)
def test_errors_of_a_file_system_say_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    store = FileStore("pvc", folder / "pvc")
    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(StoreError, match=says):
        store.write("a/b", [b"x"])
    monkeypatch.undo()
    assert store.listing("a") == {}


def test_a_claim_that_is_not_mounted_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_sidecar.stores.filesystem.STORES_DIR", str(folder))
    (folder / "pvc").mkdir()
    store = FileStore("pvc", folder / "pvc" / "team" / "gpt")
    for use in (lambda: store.probe(1), lambda: store.write("x", [b"x"]), lambda: store.listing("")):
        with pytest.raises(StoreError, match="no volume is mounted"):
            use()


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "file:relative", "", "/plain"])
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(StoreError, match="must be file:///folder or s3://bucket/prefix"):
        make_store(StoreConfig("pvc", url), {})


@pytest.mark.s3
@pytest.mark.slow
def test_s3_in_trouble_says_what_to_do(s3_server: S3Server) -> None:
    def opened(bucket: str = "holdfast", **changes: str) -> Store:
        return make_store(StoreConfig("s3", f"s3://{bucket}/p", env_prefix="S_"), s3_server.environment("S_") | changes)

    opened().probe(1)
    with pytest.raises(StoreError, match=r"'nobody' does not exist .*create it"):
        opened("nobody").probe(1)
    with pytest.raises(StoreError, match="does not accept the credentials"):
        opened(S_AWS_SECRET_ACCESS_KEY="wrong").probe(1)
    with pytest.raises(StoreError, match="Secret of store 's3' lacks AWS_ACCESS_KEY_ID"):
        opened(S_AWS_ACCESS_KEY_ID="")
    store = opened()
    store.probe(1)
    s3_server.stop()
    with pytest.raises(StoreError, match=r"cannot reach http://127.0.0.1"), contextlib.closing(_Bounded(20)):
        store.write("x", [b"x"])
    s3_server.start()
    store.write("x", [b"x"])


class _Bounded:
    """Fails if closed later than it should be."""

    def __init__(self, seconds: float) -> None:
        import time

        self._clock = time.monotonic
        self._deadline = self._clock() + seconds

    def close(self) -> None:
        assert self._clock() < self._deadline
