"""What `verify` and `report` say of a run folder that is read-only, holds links, or copies of a sync tool."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdtune import __main__

RUN = Path(__file__).parent.parent / "data" / "runs" / "v5"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "runs" / "run"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*argv: str) -> tuple[int, str, str]:
        code = __main__.main(list(argv))
        return code, *capsys.readouterr()

    return call


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def read_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, as on a file system that is mounted read-only; modes would not stop the root user."""
    real = os.open

    def refuse(file: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and Path(file).is_relative_to(run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return real(file, flags, *more, **options)

    def opening(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if set(mode) & set("wax+") and Path(file).is_relative_to(run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return plain(file, mode, *more, **options)

    plain = open
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("builtins.open", opening)
    monkeypatch.setattr("io.open", opening)
    return run


def test_a_run_that_is_read_only_is_verified(read_only: Path, command: Command) -> None:
    before = tree(read_only)
    code, out, err = command("verify", str(read_only))
    assert (code, err) == (0, "")
    assert out.endswith(": all whole\n")
    assert tree(read_only) == before


def test_damage_in_a_run_that_is_read_only_is_told_and_left(
    run: Path, request: pytest.FixtureRequest, command: Command
) -> None:
    victim = next((run / "trials").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-9])
    before = tree(run)
    request.getfixturevalue("read_only")
    code, out, err = command("verify", str(run))
    assert (code, err) == (3, "")
    first, *_, last = out.splitlines()
    assert first.startswith(f"{victim}: unreadable: ")
    assert first.endswith(": damaged, and nothing is changed: the run folder is read-only, runs again")
    assert last.endswith(": 1 fault")
    assert tree(run) == before


def test_a_run_that_is_read_only_is_reported(read_only: Path, command: Command, tmp_path: Path) -> None:
    code, out, err = command("report", str(read_only))
    assert (code, err) == (0, "")
    assert "Pareto front of " in out
    assert f"no page is written: {read_only} is read-only (choose --out FILE.html)" in out
    assert command("report", str(read_only), "--out", str(tmp_path / "page.html"))[0] == 0
    assert (tmp_path / "page.html").exists()


def test_links_are_told_and_left_alone(run: Path, command: Command, tmp_path: Path) -> None:
    assert command("verify", str(run))[0] == 0
    path = next((run / "trials").glob("*.parquet"))
    path.rename(tmp_path / "cached")
    path.symlink_to(tmp_path / "cached")
    table = (run / "pareto.parquet").read_bytes()
    code, out, _ = command("verify", str(run))
    assert (run / "pareto.parquet").read_bytes() == table  # it holds the row behind the link
    assert code == 3
    assert f"{path}: is a link that leads outside {tmp_path / 'runs'} (" in out
    assert "damaged" not in out
    assert out.endswith(": 1 link not read\n")
    assert path.is_symlink()
    code, out, _ = command("report", str(run))
    assert code == 0
    assert f"left out: {path}: is a link that leads outside" in out


def test_copies_of_sync_tools_are_told_and_left_alone(run: Path, command: Command) -> None:
    path = next((run / "trials").glob("*.parquet"))
    copy = path.with_name(f"{path.stem}.sync-conflict-20240102-030405-ABCDEFG.parquet")
    shutil.copy(path, copy)
    code, out, _ = command("verify", str(run))
    assert code == 0
    assert f"{copy}: not ours, as the conflict copy of a sync tool: left out\n" in out
    assert out.endswith(": all whole\n")
    assert copy.exists()
