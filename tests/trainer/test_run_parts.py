"""`holdfast run`: what needs no process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from holdfast._run import pod, ports


def _range(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "range").write_text(text)
    monkeypatch.setattr(ports, "_RANGE", folder / "range")


def test_a_port_is_none_that_the_kernel_hands_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _range(tmp_path, monkeypatch, "10010\t65535\n")
    assert {ports.free_port() for _ in range(200)} <= set(range(10_000, 10_010))


def test_a_port_that_is_taken_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_others", lambda: [port])
        assert ports.free_port() != port


@pytest.mark.parametrize("text", ["1024 65535", "what?"])
def test_without_other_ports_it_is_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    _range(tmp_path, monkeypatch, text)
    assert ports.free_port() > 0
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "nothing")
    assert ports.free_port() > 0


def test_leftovers_may_vanish_while_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start at once remove the same folders: a link to nothing is there, and is not."""
    monkeypatch.setattr(pod, "memory_folder", lambda: str(tmp_path))
    for name in ("99999998-x", "99999999-x"):
        (tmp_path / f"holdfast-run-{name}").symlink_to("nowhere")
    (tmp_path / "holdfast-run-99999997-x").mkdir()
    pod.remove_leftovers()
    assert not (tmp_path / "holdfast-run-99999997-x").exists()
