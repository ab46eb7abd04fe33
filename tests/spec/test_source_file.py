"""A sweep file that is missing, is no file, or may not be read is told of in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qdtune.messages import SpecError
from qdtune.spec.source_file import read_sweep_file


def test_read_gives_the_bytes_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\r\n")
    assert read_sweep_file(str(tmp_path / "a.yaml")) == b"a: 1\r\n"


def test_read_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").touch()
    with pytest.raises(SpecError, match=r"^error: no such file: \S+grdi.yaml \(did you mean \S+/grid.yaml\?\)$"):
        read_sweep_file(str(tmp_path / "grdi.yaml"))
    (tmp_path / "mn.yaml").touch()  # its ending alone is no likeness
    with pytest.raises(SpecError, match=r"^error: no such file: \S+nope.yaml$"):
        read_sweep_file(str(tmp_path / "nope.yaml"))
    with pytest.raises(SpecError, match=r"^error: no such file: \S+there/grid.yaml$"):
        read_sweep_file(str(tmp_path / "not" / "there" / "grid.yaml"))


def test_read_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with pytest.raises(SpecError, match=r"pipe is not a regular file$"):
        read_sweep_file(str(tmp_path / "pipe"))
    with pytest.raises(SpecError, match=r"is a folder \(give a .yaml file\)$"):
        read_sweep_file(str(tmp_path))
    with pytest.raises(SpecError, match=r"cannot read a\\x00b: embedded null byte$"):
        read_sweep_file("a\0b")
    with pytest.raises(SpecError, match=r"cannot read .*: File name too long$"):
        read_sweep_file("x" * 5000)


def test_read_says_that_permission_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").touch()

    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root, who may run this, is never refused by a mode
    with pytest.raises(SpecError, match=r"^error: cannot read .*a.yaml: Permission denied$"):
        read_sweep_file(str(tmp_path / "a.yaml"))
