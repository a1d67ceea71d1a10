"""Atomic writes: in which order what is written reaches the disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from aptp.core.files import replacing, settle, write_json, write_text


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What reaches the disk, and when a file gets its name: files by their content, folders by `folder`."""
    seen: list[tuple[str, object]] = []
    rename = os.replace

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append(("sync", "folder" if is_folder else os.pread(descriptor, 99, 0).decode()))

    def replace(source: Path, target: Path) -> None:
        seen.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.replace", replace)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: list) -> None:
    write_text(tmp_path / "new/a.txt", "all")
    assert events == [("sync", "all"), ("rename", "a.txt"), ("sync", "folder")]
    assert (tmp_path / "new/a.txt").read_text() == "all"


def test_many_small_files_do_not_wait(tmp_path: Path, events: list) -> None:
    with replacing(tmp_path / "a.png", lasting=False) as temporary:
        temporary.write_bytes(b"all")
    assert events == [("rename", "a.png")]


def test_a_folder_is_settled_whole(tmp_path: Path, events: list) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a").write_text("a")
    (tmp_path / "b").write_text("b")
    settle(tmp_path)
    assert sorted(events) == [("sync", "a"), ("sync", "b"), ("sync", "folder"), ("sync", "folder")]


def test_what_finds_no_room_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"old": 1})

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert (tmp_path / "a.json").read_text() == '{\n "old": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("call", "code"), [("fsync", errno.EINVAL), ("fsync", errno.EBADF), ("open", errno.EACCES)])
def test_a_file_system_that_syncs_no_folders_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    able = getattr(os, call)

    def unable(what: int | Path, *given: int) -> int | None:
        if os.path.isdir(what):
            raise OSError(code, os.strerror(code))
        return able(what, *given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, unable)
        write_text(tmp_path / "a.txt", "all")
    assert (tmp_path / "a.txt").read_text() == "all"
