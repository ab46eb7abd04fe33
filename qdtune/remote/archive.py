"""A run folder as lines of text, and back: how results travel where there is nothing but a job's log.

The lines hold one zlib stream, in base64, of records: a line of JSON with a file's name and its number of bytes, then
these bytes. Names and bytes are all there is: there are no links, modes or owners that would have to be refused.
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

BEGIN, END = "qdtune-archive-1", "qdtune-archive-end"  # the number is that of this format
CHUNK = 12_288  # bytes per line, so that a line stays below the 20,000 characters that Ray's log reader handles
MOST = 4 * 2**30  # bytes that a run folder may have: an archive is text in memory on its way
LONGEST = 4_096  # bytes of a record's first line
DRAWN = (".html", ".svg")  # pages run code in a browser: `qdtune report` draws them here
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DEPTH = 4  # folders within folders


class ArchiveError(ValueError):
    """Lines that are no archive, or no whole one, or one whose files may not be written."""


class Packed(NamedTuple):
    """What an archive has brought: how many files, and their bytes."""

    files: int
    size: int


def archive_lines(folder: Folder) -> Iterator[str]:
    """The lines of an archive of all files in a folder, but for what is drawn from them; one file at a time is read.

    Raises:
        StorageError: a file cannot be read.
    """
    names = [name for name in folder.list_paths() if not name.endswith(DRAWN)]
    yield BEGIN
    deflate, digest, rest = zlib.compressobj(), hashlib.sha256(), b""
    for name in names:
        data = folder.read_file(name) or b""
        head = json.dumps([name, len(data)]).encode() + b"\n"
        rest += deflate.compress(head) + deflate.compress(data)
        digest.update(head + data)
        while len(rest) >= CHUNK:
            yield base64.b64encode(rest[:CHUNK]).decode()
            rest = rest[CHUNK:]
    yield base64.b64encode(rest + deflate.flush()).decode()
    yield f"{END} {len(names)} {digest.hexdigest()}"


def unpack_lines(lines: Iterable[str], into: Path) -> Packed:
    """Writes the files of an archive into a folder, which is made, and returns what that was.

    Args:
        lines: the log of a job: what precedes the archive is passed over.
        into: must not be there yet; what is written is there in part if this raises.

    Raises:
        ArchiveError: no archive, one that is cut off or changed, or a name that leads out of the folder.
    """
    into.mkdir(mode=0o700, parents=True)
    reader = _Reader(into)
    ended = ""
    within = False
    for line in map(str.rstrip, lines):
        if within and line.startswith(END):
            ended = line
            break
        if within:
            reader.queue(line)
        within = within or line == BEGIN
    if not ended or ended != reader.end():
        what = "is cut off or was changed on its way" if within else "is not there"
        raise ArchiveError(f"the job must print a whole archive, but it {what}: fetch once more")
    return Packed(reader.files, reader.size)


class _Reader:
    """Takes an archive apart as its lines come; never holds more than one file."""

    def __init__(self, into: Path) -> None:
        self.into, self.inflate, self.digest = into, zlib.decompressobj(), hashlib.sha256()
        self.buffer, self.open_file, self.left = b"", "", 0
        self.files = self.size = 0

    def queue(self, line: str) -> None:
        try:
            data = base64.b64decode(line, validate=True)
            while data:  # in pieces: a small stream may be a huge one's
                self.buffer += self.inflate.decompress(data, 2**20)
                data = self.inflate.unconsumed_tail
                self._records()
        except ArchiveError:
            raise
        except (zlib.error, ValueError, RecursionError, FileExistsError, NotADirectoryError) as error:
            raise ArchiveError(f"the archive is damaged: {error}: fetch once more") from None

    def end(self) -> str:
        """What the last line has to be; nothing where a record is not complete."""
        self.queue("")
        whole = not self.open_file and not self.buffer
        return f"{END} {self.files} {self.digest.hexdigest()}" if whole else ""

    def _records(self) -> None:
        while self.buffer or self.open_file:
            if not self.open_file:
                line, end, _ = self.buffer.partition(b"\n")
                if not end:
                    if len(line) > LONGEST:
                        raise ArchiveError("the archive is damaged: a name has no end: fetch once more")
                    return
                self._begin(line)
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

    def _begin(self, line: bytes) -> None:
        record = json.loads(line)
        if not (isinstance(record, list) and [type(part) for part in record] == [str, int] and record[1] >= 0):
            raise ArchiveError("the archive is damaged: a file must have a name and a size: fetch once more")
        name, self.left = record
        parts = name.split("/")
        if len(parts) > DEPTH or not all(NAME.fullmatch(part) for part in parts) or name.endswith(DRAWN):
            raise ArchiveError(f"a file of a run folder cannot be called {name!r}: nothing was fetched")
        path = self.into / name
        if path.exists():
            raise ArchiveError(f"the archive holds {name!r} twice: nothing was fetched")
        self.files, self.size = self.files + 1, self.size + self.left
        if self.size > MOST:
            raise ArchiveError(f"an archive may hold {MOST:,} bytes, this one holds more: nothing was fetched")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.open_file = name
