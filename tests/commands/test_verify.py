"""What `verify` and `report` say of a run folder that is read-only, holds links, or copies of a sync tool."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdtune import __main__
from qdtune.model.signed_file import TRIAL, sign_file

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
    assert "Pareto front on " in out
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


def spoil(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-9])
    return path


def test_what_follows_from_damage_is_told_as_it_is(run: Path, command: Command) -> None:
    first, second, third, *_ = sorted(path.stem for path in (run / "trials").iterdir())
    for folder, stem in (("trials", first), ("history", second), ("history", first)):
        spoil(run / folder / f"{stem}.parquet")
    spoil(run / "weights" / f"{third}.safetensors")
    spoil(next((run / "warmup").iterdir()))
    for stem in (first, second, third):  # any signed file is a checkpoint for `verify`
        blob = sign_file({"__metadata__": {TRIAL: first}}, b"")
        (run / "paused").mkdir(exist_ok=True)
        (run / "paused" / f"{stem}.safetensors").write_bytes(blob[:-9] if stem == third else blob)
    for name in ("trials/junk.parquet", "trials/0123456789ab.parquet", "history/junk.parquet"):
        (run / name).write_bytes(b"junk")
    (run / "weights" / "junk.safetensors").write_bytes(b"junk")
    code, out, _ = command("verify", str(run))
    assert code == 3
    ends = {}
    for line in out.splitlines():
        if ": set aside, " in line:
            path, _, what = line.partition(": ")
            ends[str(Path(path).relative_to(run))] = what.partition(": set aside, ")[2]
    nobodys = "belongs to no result of this sweep"
    warmup = next((run / "warmup").glob("*.damaged")).name.removesuffix(".damaged")
    assert ends == {
        f"trials/{first}.parquet": "runs again",
        f"history/{first}.parquet": "runs again",
        f"history/{second}.parquet": "the result stands without its learning curve",
        f"weights/{third}.safetensors": "the next launch trains its trial again",
        f"warmup/{warmup}": "is trained again if a trial needs it",
        f"paused/{second}.safetensors": "its trial is trained from the beginning",
        f"paused/{third}.safetensors": "its trial is trained from the beginning",
        "trials/junk.parquet": nobodys,
        "trials/0123456789ab.parquet": nobodys,
        "history/junk.parquet": nobodys,
        "weights/junk.safetensors": nobodys,
    }
    assert f"it belongs to trial {first}: set aside" in out
    assert out.endswith(": 11 faults\n")


def test_what_was_lost_is_told_again_and_not_called_whole(run: Path, command: Command) -> None:
    first, second, *_ = sorted(path.stem for path in (run / "trials").iterdir())
    spoil(run / "history" / f"{first}.parquet")
    spoil(run / "weights" / f"{second}.safetensors")
    assert command("verify", str(run))[1].endswith(": 2 faults\n")
    code, out, _ = command("verify", str(run))
    assert code == 3
    assert f"{second} (" in out
    assert ") has lost its weights; the next launch trains it again\n" in out
    assert out.endswith(": 1 learning curve lost, weights of 1 trial lost\n")
    code, out, _ = command(
        "launch", str(run / "sweep.yaml"), "--set", "name=run", "--dry-run", "--runs-dir", str(run.parent)
    )
    assert (code, "  3 have a result in" in out) == (0, True)


def test_weights_of_another_trial_are_damage(run: Path, command: Command) -> None:
    first, second, *_ = sorted((run / "weights").iterdir())
    shutil.copy(second, first)
    code, out, _ = command("verify", str(run))
    assert (code, f"{first}: they belong to trial {second.stem}: set aside, the next launch" in out) == (3, True)
    assert not first.exists()


def test_a_run_without_any_weights_has_lost_none(run: Path, command: Command) -> None:
    shutil.rmtree(run / "weights")
    code, out, _ = command("verify", str(run))
    assert (code, out.endswith(": all whole\n")) == (0, True)


@pytest.mark.parametrize("verb", ["verify", "report", "replay", "export"])
def test_commands_that_read_answer_alike_to_what_is_no_run(
    verb: str, run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--front", "--out", str(tmp_path / "out")] if verb == "export" else []
    file = run / "sweep.yaml"
    what = f"error: {file} must be a run folder, such as runs/NAME, got a file\n"
    assert command(verb, str(file), *options) == (2, "", what)
    code, out, err = command(verb, "", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "empty" in err
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.parent.name == "trials":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    code, out, err = command(verb, str(run), *options)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: {run}/trials/\w+\.parquet must be readable, got Permission denied\n", err)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("verify", []),
        ("report", []),
        ("report", ["--out", "a\nb/page.html"]),
        ("replay", ["--orders", "1", "--at-once", "1", "--pruner", "pareto"]),
        ("export", ["--front", "--out", "a\nb/out"]),
        ("launch", ["--runs-dir", "a\nb"]),
        ("launch", ["--runs-dir", "a\nb", "--dry-run"]),
    ],
    ids=["verify", "report", "page", "replay", "export", "launch", "dry run"],
)
def test_a_line_break_in_a_path_is_printed_as_an_escape(
    verb: str, options: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUN, "a\nb/tiny")
    shutil.copy(RUN / "sweep.yaml", "tiny.yaml")
    code, out, err = command(verb, "tiny.yaml" if verb == "launch" else "a\nb/tiny", *options)
    assert (code, err) == (0, "")
    assert not re.search(r"^b/|\ba$", out, re.MULTILINE)
    assert r"a\nb" in out
    assert sorted(os.listdir()) == ["a\nb", "tiny.yaml"]  # and no folder that is named as it is printed
