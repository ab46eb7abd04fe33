"""Turns a run folder into lines of text and back, so that results can travel in the log of a job.

The lines hold one zlib stream of records in base64. A record is a line of JSON with the name of a file and its number
of bytes, then these bytes. An archive has no links, modes or owners, so none has to be refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qdtune.store.folder import Folder

BEGIN_LINE, END_LINE = "qdtune-archive-1", "qdtune-archive-end"  # 1 is the version of the format
LINE_BYTES = 12_288  # so that a line has fewer than the 20,000 characters that Ray's log reader handles
LEFT_OUT_FOLDERS = ("paused/",)  # checkpoints: they count only on the machine that made them, and may be large
MAX_BYTES = 4 * 2**30  # of a run folder, because its archive is held in memory as text
MAX_HEAD_BYTES = 4_096  # of the first line of a record
DRAWN_SUFFIXES = (".html", ".svg")  # left out, because pages run code in a browser: `qdtune report` draws them
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MAX_PARTS = 4  # of a path


class ArchiveError(ValueError):
    """The lines hold no complete archive, or files that may not be written."""


class ArchiveSize(NamedTuple):
    """The number of files in an archive and their bytes."""

    files: int
    size: int


def archive_lines(folder: Folder) -> Iterator[str]:
    """The lines of an archive of a folder, without `DRAWN_SUFFIXES` and `LEFT_OUT_FOLDERS`.

    It reads one file at a time.

    Raises:
        StorageError: a file cannot be read.
    """
    names = [name for name in folder.list_paths() if not name.endswith(DRAWN_SUFFIXES)]
    names = [name for name in names if not name.startswith(LEFT_OUT_FOLDERS)]
    yield BEGIN_LINE
    deflate, digest, rest = zlib.compressobj(), hashlib.sha256(), b""
    for name in names:
        data = folder.read_file(name) or b""
        head = json.dumps([name, len(data)]).encode() + b"\n"
        rest += deflate.compress(head) + deflate.compress(data)
        digest.update(head + data)
        while len(rest) >= LINE_BYTES:
            yield base64.b64encode(rest[:LINE_BYTES]).decode()
            rest = rest[LINE_BYTES:]
    yield base64.b64encode(rest + deflate.flush()).decode()
    yield f"{END_LINE} {len(names)} {digest.hexdigest()}"


def unpack_lines(lines: Iterable[str], into: Path) -> ArchiveSize:
    """Writes the files of an archive into a new folder and returns its size.

    Args:
        lines: the log of a job; lines before the archive are skipped.
        into: the folder; it must not exist. If this raises, a part of the files may be written.

    Raises:
        ArchiveError: there is no archive, it is cut off or changed, or a name leads out of the folder.
    """
    into.mkdir(mode=0o700, parents=True)
    reader = _ArchiveReader(into)
    ended = ""
    within = False
    for line in map(str.rstrip, lines):
        if within and line.startswith(END_LINE):
            ended = line
            break
        if within:
            reader.read_line(line)
        within = within or line == BEGIN_LINE
    if not ended or ended != reader.make_end_line():
        what = "is cut off or was changed on its way" if within else "is not there"
        raise ArchiveError(f"the job must print a whole archive, but it {what}: fetch once more")
    return ArchiveSize(reader.files, reader.size)


class _ArchiveReader:
    """Writes the files of an archive as its lines arrive; holds at most one file in memory."""

    def __init__(self, into: Path) -> None:
        self.into, self.inflate, self.digest = into, zlib.decompressobj(), hashlib.sha256()
        self.buffer, self.open_file, self.left = b"", "", 0
        self.files = self.size = 0

    def read_line(self, line: str) -> None:
        try:
            data = base64.b64decode(line, validate=True)
            while data:  # in pieces, because a small stream may inflate to a huge one
                self.buffer += self.inflate.decompress(data, 2**20)
                data = self.inflate.unconsumed_tail
                self._write_records()
        except ArchiveError:
            raise
        except (zlib.error, ValueError, RecursionError, FileExistsError, NotADirectoryError) as error:
            raise ArchiveError(f"the archive is damaged: {error}: fetch once more") from None

    def make_end_line(self) -> str:
        """The last line of a correct archive; empty if a record is not complete."""
        self.read_line("")
        whole = not self.open_file and not self.buffer
        return f"{END_LINE} {self.files} {self.digest.hexdigest()}" if whole else ""

    def _write_records(self) -> None:
        while self.buffer or self.open_file:
            if not self.open_file:
                line, end, _ = self.buffer.partition(b"\n")
                if not end:
                    if len(line) > MAX_HEAD_BYTES:
                        raise ArchiveError("the archive is damaged: a name has no end: fetch once more")
                    return
                self._begin_file(line)
                self._take(len(line) + 1)
            data = self._take(min(self.left, len(self.buffer)))
            self.left -= len(data)
            with (self.into / self.open_file).open("ab") as file:
                file.write(data)
            if self.left:
                return
            self.open_file = ""

    def _take(self, count: int) -> bytes:
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        self.digest.update(data)
        return data

    def _begin_file(self, line: bytes) -> None:
        record = json.loads(line)
        if not (isinstance(record, list) and [type(part) for part in record] == [str, int] and record[1] >= 0):
            raise ArchiveError("the archive is damaged: a file must have a name and a size: fetch once more")
        name, self.left = record
        parts = name.split("/")
        if (
            len(parts) > MAX_PARTS
            or not all(NAME_PATTERN.fullmatch(part) for part in parts)
            or name.endswith(DRAWN_SUFFIXES)
        ):
            raise ArchiveError(f"a file of a run folder cannot be called {name!r}: nothing was fetched")
        path = self.into / name
        if path.exists():
            raise ArchiveError(f"the archive holds {name!r} twice: nothing was fetched")
        self.files, self.size = self.files + 1, self.size + self.left
        if self.size > MAX_BYTES:
            raise ArchiveError(f"an archive may hold {MAX_BYTES:,} bytes, this one holds more: nothing was fetched")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.open_file = name
