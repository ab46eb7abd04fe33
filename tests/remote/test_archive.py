"""A run folder as lines of text, and back: what is whole comes whole, what is not whole is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdtune.remote import archive
from qdtune.remote.archive import BEGIN_LINE, END_LINE, ArchiveError, ArchiveSize, archive_lines, unpack_lines
from qdtune.store.open_folder import open_folder

FILES = {
    "sweep.yaml": b"version: 1\n",
    "empty.parquet": b"",
    "trials/ab12.parquet": bytes(range(256)) * 300,
    "trials/ab12.parquet.damaged": b"\n\n",
    "warmup/x/y/z.safetensors": random.Random(0).randbytes(50_000),
}


def made(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def there(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def archived(files: list[tuple[str, bytes]]) -> list[str]:
    """An archive of these files by whoever wants to write one."""
    raw = b"".join(json.dumps([name, len(data)]).encode() + b"\n" + data for name, data in files)
    end = f"{END_LINE} {len(files)} {hashlib.sha256(raw).hexdigest()}"
    return [BEGIN_LINE, base64.b64encode(zlib.compress(raw)).decode(), end]


def test_folder_comes_back_whole_whatever_else_the_log_holds(tmp_path: Path) -> None:
    left_out = {"paused/ab12.safetensors": b"a checkpoint", "report.html": b"<p>"}
    lines = list(archive_lines(open_folder(made(tmp_path / "run", FILES | left_out))))
    assert max(map(len, lines)) < 20_000
    log = ["Running entrypoint for job x: ...", "a warning", *(f"{line}\n" for line in lines), "goodbye"]
    assert unpack_lines(log, tmp_path / "out") == ArchiveSize(len(FILES), sum(map(len, FILES.values())))
    assert there(tmp_path / "out") == FILES


@settings(max_examples=25)
@given(
    st.dictionaries(st.from_regex(archive.NAME_PATTERN, fullmatch=True), st.binary(max_size=200), max_size=8),
    st.randoms(),
)
def test_any_files_come_back_in_lines_of_any_length(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], chance: random.Random
) -> None:
    files = {name: data for name, data in files.items() if not name.endswith(archive.DRAWN_SUFFIXES)}
    folder = tmp_path_factory.mktemp("any")
    begin, text, end = archived(list(files.items()))
    raw, lines = base64.b64decode(text), []
    while raw:
        n = chance.randint(1, len(raw))
        lines.append(base64.b64encode(raw[:n]).decode())
        raw = raw[n:]
    unpack_lines([begin, *lines, end], folder / "out")
    assert there(folder / "out") == files


def test_links_dot_files_and_pages_stay_where_they_are(tmp_path: Path) -> None:
    others = {"report.html": b"<script>", "front.svg": b"<svg>", ".lock": b"pid 1"}
    run = made(tmp_path / "runs" / "run", FILES | others)
    made(tmp_path / "secret", {"key": b"secret"})
    os.symlink(tmp_path / "secret" / "key", run / "trials" / "link.parquet")
    os.symlink(tmp_path / "secret", run / "linked")
    unpack_lines(archive_lines(open_folder(run)), tmp_path / "out")
    assert there(tmp_path / "out") == FILES


def test_what_is_cut_off_or_changed_is_refused(tmp_path: Path) -> None:
    lines = list(archive_lines(open_folder(made(tmp_path / "run", FILES))))
    chance = random.Random(1)
    wrong = [lines[:n] for n in range(len(lines))]
    wrong += [[*lines[:n], *lines[n + 1 :]] for n in range(len(lines))]
    for n, line in enumerate(lines):
        k = chance.randrange(len(line))
        other = "B" if line[k] == "A" else "A"
        wrong.append([*lines[:n], line[:k] + other + line[k + 1 :], *lines[n + 1 :]])
    for n, each in enumerate(wrong):
        with pytest.raises(ArchiveError, match=r"fetch once more$|nothing was fetched$"):
            unpack_lines(each, tmp_path / f"out{n}")


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/x", "a/../b", "a//b", "", ".", ".lock", "a/.b", "a\\..\\b", "a\0b", "a\nb", "é", "C:x"),
        *("x" * 200, "a/b/c/d/e", "report.html", "a/b.svg"),
    ],
)
def test_names_that_lead_out_or_hide_are_refused_and_written_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match=r"^a file of a run folder cannot be called .*: nothing was fetched$"):
        unpack_lines(archived([(name, b"x")]), tmp_path / "out" / "run")
    assert there(tmp_path) == {}


@pytest.mark.parametrize("head", [b"{}", b'["a"]', b'["a", -1]', b'["a", "1"]', b"[1, 1]", b"x", b"[" * 4_000])
def test_records_of_another_shape_are_refused(tmp_path: Path, head: bytes) -> None:
    text = base64.b64encode(zlib.compress(head + b"\n")).decode()
    with pytest.raises(ArchiveError, match="the archive is damaged"):
        unpack_lines([BEGIN_LINE, text, f"{END_LINE} 1 x"], tmp_path / "out")


@pytest.mark.parametrize("second", ["a", "a/b"])
def test_one_name_twice_is_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(ArchiveError, match=r"twice|damaged"):
        unpack_lines(archived([("a", b"1"), (second, b"2")]), tmp_path / "out")


def test_small_archives_of_huge_files_are_refused_before_they_fill_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    with pytest.raises(ArchiveError, match=r"may hold 1,000,000 bytes, this one holds more: nothing was fetched$"):
        unpack_lines(archived([("a", bytes(999_999)), ("b", bytes(2))]), tmp_path / "out")
    nameless = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    with pytest.raises(ArchiveError, match="a name has no end"):
        unpack_lines([BEGIN_LINE, nameless], tmp_path / "other")
