"""Arenas: created whole, grown, adopted, leased; and what happens when their bytes lie."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from holdfast_core import arena
from holdfast_core.arena import NO_STEP, PAGE, ArenaError, ArenaHeader
from holdfast_core.config import SidecarConfig
from holdfast_core.manifest import CorruptShard
from holdfast_core.timeline import Copy, Resume
from holdfast_sidecar import cgroup
from holdfast_sidecar.arenas import Arenas
from holdfast_sidecar.memory import Budget
from holdfast_sidecar.slots import NoMemory

from .harness import UID, tmpfs
from .images import flip, map_file, seal_content

MIB = 1 << 20
SIZE = 50_000


def config(folder: Path, **more: object) -> SidecarConfig:
    base = {"slot_bytes": 256 << 10, "slots": 3, "processes": 1, "world_size": 1} | more
    return SidecarConfig(UID, "gpt", "default", "gpt-0", 0, 0, shared_dir=str(folder), tls_dir="", **base)  # type: ignore[arg-type]


def opened(folder: Path, free: int | None = None, **more: object) -> Arenas:
    settings = config(folder, **more)
    arenas = Arenas(settings, Budget(settings, folder / "arena", lambda: free))
    arenas.adopt()
    return arenas


def seal(arenas: Arenas, step: int, rank: int = 0, attempt: int = 0, slot: int | None = None) -> int:
    """As a trainer does: through its own mapping."""
    path = sorted((Path(arenas.config.shared_dir) / "arena").glob(f"rank-{rank:05d}.*"))[-1]
    buf = map_file(path)
    slots = [arena.read_slot(buf, i) for i in range(arenas.config.slots)]
    index = arena.choose_slot(slots, arena.committed(buf), 0) if slot is None else slot
    assert index is not None
    seal_content(buf, index, rank, arenas.config.world_size, step, attempt, SIZE)
    return index


def test_an_arena_is_there_in_full_before_the_trainer_starts(folder: Path) -> None:
    arenas = opened(folder, processes=2, world_size=4)
    arenas.prefault()
    files = sorted((folder / "arena").iterdir())
    assert [f.name for f in files] == ["rank-00000.g0.arena", "rank-00001.g0.arena"]
    for file in files:
        info = file.stat()
        assert info.st_blocks * 512 >= info.st_size == 4 * PAGE + 3 * (256 << 10)
        assert stat.S_IMODE(info.st_mode) == 0o666
    assert stat.S_IMODE((folder / "arena").stat().st_mode) == 0o777
    assert arenas.total_bytes == sum(f.stat().st_size for f in files)


@pytest.mark.parametrize(
    ("more", "free", "says"),
    [
        ({"slot_bytes": 10 * MIB}, 60 * MIB, "left under the sidecar's memory limit: set checkpoint.memory.size to 10Mi"),
        ({"slot_bytes": 10 * MIB + 1}, 60 * MIB, "set checkpoint.memory.size to 11Mi"),
        ({"slot_bytes": 10 * MIB, "memory_limit": 9 * MIB}, None, "9 MiB are left of the configured memory limit"),
        ({"slot_bytes": 1 << 60}, None, "MiB are left on"),
    ],
)  # fmt: skip
def test_an_arena_that_does_not_fit_is_refused_with_the_setting(
    folder: Path, more: dict[str, object], free: int | None, says: str
) -> None:
    arenas = opened(folder, free, **more)
    with pytest.raises(NoMemory) as caught:
        arenas.prefault()
    assert says in str(caught.value)
    assert arenas.error == str(caught.value)
    assert list((folder / "arena").iterdir()) == []


def test_a_full_volume_is_an_error_not_a_bus_error(folder: Path) -> None:
    with tmpfs(folder / "arena", "1m") as mount:
        arenas = opened(folder, slot_bytes=MIB)
        with pytest.raises(NoMemory, match=r"MiB are left on the shared memory volume: set checkpoint.memory.size to 1Mi"):
            arenas.prefault()
        assert list(mount.iterdir()) == []
        del arenas


def test_growth_keeps_the_old_snapshots_until_a_step_is_committed_in_the_new_file(folder: Path) -> None:
    arenas = opened(folder)
    arenas.prefault()
    seal(arenas, 1)
    arenas.commit(1)
    assert arenas.reserve(0, 100) is arenas.reserve(0, 256 << 10), "what fits needs no growth"
    grown = arenas.reserve(0, MIB)
    assert grown.header.generation == 1
    assert arena.committed(grown.buf) == 1
    assert arenas.sealed() == {0: (Copy(1, 0),)}
    seal(arenas, 2)
    assert arenas.sealed() == {0: (Copy(1, 0), Copy(2, 0))}
    arenas.commit(1)
    assert len(list((folder / "arena").iterdir())) == 2
    arenas.commit(2)
    assert [f.name for f in (folder / "arena").iterdir()] == ["rank-00000.g1.arena"]
    assert arenas.sealed() == {0: (Copy(2, 0),)}


def test_an_empty_arena_makes_room_before_it_grows(folder: Path) -> None:
    arenas = opened(folder, memory_limit=4 * MIB, slot_bytes=MIB)
    arenas.prefault()
    assert arenas.reserve(0, MIB + 1).header.generation == 0
    seal(arenas, 1)
    with pytest.raises(NoMemory, match=r"set checkpoint.memory.size to 2Mi \(now 1Mi\)"):
        arenas.reserve(0, 2 * MIB)
    assert arenas.sealed() == {0: (Copy(1, 0),)}


def test_a_restarted_sidecar_adopts_what_is_there(folder: Path) -> None:
    arenas = opened(folder)
    arenas.prefault()
    arenas.fence(3)
    seal(arenas, 7, attempt=3)
    arenas.commit(7)
    view = arenas.find(0, Copy(7, 3))
    assert view
    arenas.lease(view)
    again = opened(folder)
    assert again.attempt == 3
    assert again.sealed() == {0: (Copy(7, 3),)}
    assert again.committed() == Copy(7, 3)
    assert arena.read_slot(map_file(view.file.path), view.slot.index).lease_until == 0


def test_what_is_not_this_jobs_is_deleted(folder: Path) -> None:
    opened(folder).prefault()
    path = folder / "arena" / "rank-00000.g0.arena"
    good = path.read_bytes()
    for name, content in {
        "rank-00000.g1.arena": good.replace(UID.encode(), b"f" * len(UID)),
        "rank-00000.g2.arena": good[: len(good) // 2],
        "rank-00000.g3.arena": b"",
        "rank-00000.g4.new": good,
        "core.1234": b"x",
    }.items():
        (folder / "arena" / name).write_bytes(content)
    other = opened(folder / "x", processes=2, world_size=2)
    other.prefault()
    os.rename(folder / "x/arena/rank-00001.g0.arena", folder / "arena/rank-00001.g0.arena")
    opened(folder)
    assert [p.name for p in (folder / "arena").iterdir()] == ["rank-00000.g0.arena"]


def test_only_what_is_abandoned_is_forgotten(folder: Path) -> None:
    arenas = opened(folder, slots=4)
    arenas.prefault()
    for slot, (step, attempt) in enumerate([(4, 1), (5, 1), (6, 1), (5, 0)]):
        arenas.fence(attempt)
        seal(arenas, step, attempt=attempt, slot=slot)
    arenas.clear_void((Resume(1, 3), Resume(2, 5)))
    assert arenas.sealed() == {0: (Copy(4, 1), Copy(5, 1))}
    arenas.clear_void((Resume(3, NO_STEP),))
    assert arenas.sealed() == {0: ()}


def test_a_lease_keeps_the_writer_off_until_the_last_reader_is_done(folder: Path) -> None:
    arenas = opened(folder, slots=2)
    arenas.prefault()
    seal(arenas, 1)
    seal(arenas, 2)
    arenas.commit(2)
    view = arenas.find(0, Copy(1, 0))
    assert view
    first, second = arenas.lease(view), arenas.lease(view)

    def free() -> int | None:
        import time

        return arena.choose_slot(view.file.slots(), 2, time.monotonic_ns())

    assert free() is None
    first()
    first()
    assert free() is None
    second()
    assert free() == view.slot.index


# --- lying bytes


def damaged(folder: Path) -> tuple[Arenas, Path, int]:
    arenas = opened(folder)
    arenas.prefault()
    return arenas, folder / "arena" / "rank-00000.g0.arena", seal(arenas, 7)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (3, "wrong magic"),
        (20, "header checksum mismatch"),
        (60, "header checksum mismatch"),
        (PAGE + 12, "slot 0: header checksum mismatch"),
        (PAGE, "unknown state"),
        (4 * PAGE + 1000, "model.weight: checksum mismatch in chunk 0 of step 7"),
        (4 * PAGE + SIZE - 1, "rng: checksum mismatch"),
        (4 * PAGE + SIZE + 200, "slot 0: manifest checksum mismatch"),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
def test_a_flipped_bit_is_found_wherever_it_is(folder: Path, at: int, says: str, warm: bool) -> None:
    arenas, path, index = damaged(folder)
    if warm:
        assert arenas.require(0, Copy(7, 0)).verify().step == 7
    assert index == 0
    flip(path, at, 0x40)
    with pytest.raises((ArenaError, CorruptShard), match=says):
        arenas.require(0, Copy(7, 0)).verify()
    arenas.drop_broken()
    arenas.clear_void(())
    arenas.prefault()
    assert arena.choose_slot(arenas.reserve(0, 100).slots(), NO_STEP, 0) is not None, "the trainer can go on"


def test_a_file_cut_short_is_an_error_never_a_bus_error(folder: Path) -> None:
    """In a process of its own, so that a SIGBUS would be seen as such."""
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from sidecar import test_arenas as t
        from holdfast_core.arena import ArenaError
        from holdfast_core.timeline import Copy, Resume
        arenas, path, index = t.damaged(Path(sys.argv[1]))
        view = arenas.find(0, Copy(7, 0))
        release = arenas.lease(view)
        for size in (300_000, 5000, 100, 0):
            os.truncate(path, size)
            assert arenas.sealed() == {0: ()}
            for use in (lambda: arenas.require(0, Copy(7, 0)), view.verify, view.manifest):
                try:
                    use()
                except ArenaError as error:
                    assert "cut short" in str(error), error
                else:
                    raise AssertionError(size)
            arenas.commit(7), arenas.fence(9), arenas.clear_void((Resume(9, 1),)), arenas.renew(), arenas.committed()
        release()
        view.clear()
        arenas.drop_broken()
        assert not path.exists()
        print("survived")
        """
    )
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), tests], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr


def test_a_snapshot_of_another_rank_or_step_is_not_believed(folder: Path) -> None:
    arenas = opened(folder)
    arenas.prefault()
    buf = map_file(folder / "arena" / "rank-00000.g0.arena")
    seal_content(buf, 0, 5, 1, 7, 0, SIZE)  # its manifest says rank 5
    with pytest.raises(CorruptShard, match="not of its step, attempt or rank"):
        arenas.require(0, Copy(7, 0)).verify()


def test_a_slot_that_was_reused_is_not_taken_for_a_corrupt_one(folder: Path) -> None:
    arenas, _, index = damaged(folder)
    view = arenas.require(0, Copy(7, 0))
    seal(arenas, 8, slot=index)
    with pytest.raises(ArenaError, match="reused"):
        view.verify()
    assert arenas.sealed() == {0: (Copy(8, 0),)}
    assert arenas.at(0, str(view.file.path), index) is not None
    assert arenas.at(0, "/etc/passwd", index) is None


def test_header_of_another_file_is_noticed(folder: Path) -> None:
    arenas, path, _ = damaged(folder)
    other = ArenaHeader(UID, 0, 1, 3, 128 << 10)
    buf = map_file(path)
    arena.format_arena(buf, other, 0)
    with pytest.raises(ArenaError, match="its header has changed"):
        arenas.require(0, Copy(7, 0))


# --- limits of the container


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


V1 = "9:name=systemd:/\n4:cpu,memory:{0}\n0::/\n"


@pytest.mark.parametrize(
    ("table", "files", "left"),
    [
        ("0::/\n", {"memory.max": 1000, "memory.current": 300, "memory.stat": "inactive_file 50\nactive_file 7"}, 757),
        ("0::/\n", {"memory.max": "max", "memory.current": 300}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": 1, "a/memory.max": 500, "a/memory.current": 100}, 400),
        (V1.format("/pod/c"), {"memory/memory.limit_in_bytes": 900, "memory/memory.usage_in_bytes": 100,
                               "memory/memory.stat": "total_inactive_file 30\ninactive_file 9"}, 830),
        (V1.format("/"), {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 1}, None),
        ("0::/../../x\n", {"memory.max": 1000, "memory.current": 2000}, 0),
        ("", {}, None),
    ],
)  # fmt: skip
def test_what_the_container_may_still_take(tmp_path: Path, table: str, files: dict[str, object], left: int | None) -> None:
    write(tmp_path / "cg", files)
    (tmp_path / "cg").mkdir(exist_ok=True)
    (tmp_path / "table").write_text(table)
    assert cgroup.available(tmp_path / "cg", tmp_path / "table") == left
