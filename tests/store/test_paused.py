"""Checkpoints in a folder: the latest one of each trial, within a limit, and no storage that fails a trial."""

import os

import pytest

from qdtune.store.folder import StorageError
from qdtune.store.paused import PausedFolder


@pytest.fixture
def where(tmp_path):
    return str(tmp_path / "paused")


def names(folder):
    return folder.folder.list_files()


def test_the_latest_checkpoint_of_a_trial_is_found_by_another_process(where):
    folder = PausedFolder(where)
    assert folder.find("a1") is None
    folder.keep("a1", b"early")
    folder.keep("a1", b"late")
    assert folder.find("a1") == b"late"
    assert PausedFolder(where).find("a1") == b"late"
    assert names(folder) == ["a1.safetensors"]


def test_a_trial_that_has_ended_leaves_no_checkpoint_until_it_starts_again(where):
    folder = PausedFolder(where)
    folder.keep("a1", b"numbers")
    folder.keep("b2", b"others")
    folder.forget(["a1", "c3"])
    folder.keep("a1", b"from a worker that is stopped late")
    assert folder.find("b2") == b"others"
    assert names(folder) == ["b2.safetensors"]
    assert folder.find("a1") is None  # it starts again
    folder.keep("a1", b"again")
    assert folder.find("a1") == b"again"


def test_a_damaged_checkpoint_is_set_aside(where):
    folder = PausedFolder(where)
    folder.keep("a1", b"damaged")
    folder.refuse("a1")
    assert folder.find("a1") is None
    assert names(folder) == ["a1.safetensors.damaged"]
    assert folder.folder.read_file("a1.safetensors.damaged") == b"damaged"


def test_beyond_the_limit_the_oldest_are_removed(tmp_path):
    folder = PausedFolder(str(tmp_path), max_bytes=10)
    for trial_id in ("a1", "b2", "c3"):
        folder.keep(trial_id, b"333")
    folder.keep("a1", b"333")  # now the latest; for a moment there are two of it
    assert names(folder) == ["a1.safetensors", "c3.safetensors"]
    folder.keep("d4", b"4444")
    assert names(folder) == ["a1.safetensors", "c3.safetensors", "d4.safetensors"]
    folder.keep("e5", b"1")
    assert names(folder) == ["a1.safetensors", "d4.safetensors", "e5.safetensors"]
    folder.keep("f6", b"x" * 11)
    assert names(folder) == ["a1.safetensors", "d4.safetensors", "e5.safetensors"], "it would remove all others"


def test_a_later_launch_knows_which_are_the_oldest(tmp_path):
    for age, trial_id in enumerate(("c3", "a1", "b2")):
        PausedFolder(str(tmp_path)).keep(trial_id, b"333")
        os.utime(tmp_path / f"{trial_id}.safetensors", (age, age))
    PausedFolder(str(tmp_path), max_bytes=10).keep("d4", b"333")
    assert sorted(os.listdir(tmp_path)) == ["a1.safetensors", "b2.safetensors", "d4.safetensors"]


def test_a_full_disk_costs_half_of_the_checkpoints_and_nothing_else(tmp_path, monkeypatch):
    folder = PausedFolder(str(tmp_path))
    for trial_id in ("a1", "b2", "c3", "d4"):
        folder.keep(trial_id, b"333")

    def fail(file, data):
        raise StorageError("the disk must be writable, got No space left on device")

    monkeypatch.setattr(folder.folder, "write_file", fail)
    folder.keep("e5", b"333")
    assert names(folder) == ["c3.safetensors", "d4.safetensors"]
    folder.keep("d4", b"444")  # its earlier one stays
    assert names(folder) == ["d4.safetensors"]
    assert folder.find("d4") == b"333"


def test_a_folder_that_cannot_be_read_has_no_checkpoints(tmp_path):
    (tmp_path / "paused").write_text("a file")
    folder = PausedFolder(str(tmp_path / "paused"))
    folder.keep("a1", b"333")
    assert folder.find("a1") is None
    folder.refuse("a1")
    folder.forget(["a1"])


def test_names_cannot_leave_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"letters and digits, got '../x'"):
        PausedFolder(str(tmp_path)).find("../x")
