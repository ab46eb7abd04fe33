"""Disks that lack a call, as network file systems do: folders that cannot be fsynced, and no file locks."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from qdtune.store import heartbeat
from qdtune.store.disk_folder import LOCK_NOTE, SYNC_NOTE, DiskFolder
from qdtune.store.folder import ReadOnlyError, RunInUse, StorageError


def refuse_folder_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_synced_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number) -> None:
    refuse_folder_sync(monkeypatch, number)
    folder = DiskFolder(tmp_path / "run")
    for name in ("a", "b"):
        folder.write_file(name, b"x")
    assert folder.list_files() == ["a", "b"]
    assert folder.notes == [SYNC_NOTE]


def test_a_full_disk_is_no_storage_that_lacks_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_folder_sync(monkeypatch, errno.ENOSPC)
    with pytest.raises(StorageError, match="No space left on device"):
        DiskFolder(tmp_path / "run").write_file("a", b"x")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_file_locks_one_launch_holds_the_folder_by_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    first, second = DiskFolder(tmp_path / "run"), DiskFolder(tmp_path / "run")
    with first.lock():
        assert first.notes == [f"this storage has no file locks: {LOCK_NOTE}"]
        assert second.is_in_use()
        told = rf"it is held by pid {os.getpid()} on host .*, last seen \d+ s ago: wait"
        with pytest.raises(RunInUse, match=told), second.lock():
            pass
    assert not second.is_in_use()
    with first.lock():
        monkeypatch.setattr(heartbeat, "STALE_S", -1.0)  # its holder was killed long ago
        with second.lock():
            pass
    assert os.listdir(tmp_path / "run") == []


def test_a_machine_with_locks_sees_the_heartbeat_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        refuse_locks(patched, errno.ENOLCK)
        held = DiskFolder(tmp_path / "run").lock()
        held.__enter__()
    with pytest.raises(RunInUse, match="last seen"), DiskFolder(tmp_path / "run").lock():
        pass
    held.__exit__(None, None, None)
    with DiskFolder(tmp_path / "run").lock():
        pass


def test_other_errors_of_locks_are_errors_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(StorageError, match="Input/output error"), DiskFolder(tmp_path / "run").lock():
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_is_read_only_is_told_from_a_storage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ReadOnlyError):
        DiskFolder(tmp_path).write_file("a", b"x")


def test_only_temporary_files_of_ours_are_removed(tmp_path: Path) -> None:
    names = [".a.parquet.123.tmp", ".syncthing.a.parquet.tmp", ".a.tmp"]
    (tmp_path / "trials").mkdir()
    for name in names:
        (tmp_path / "trials" / name).touch()
    with DiskFolder(tmp_path).lock():
        pass
    assert sorted(os.listdir(tmp_path / "trials")) == sorted(names[1:])
