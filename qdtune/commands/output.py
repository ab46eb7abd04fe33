"""Standard output and standard error that do not get in the way.

A terminal goes away, the disk of a log fills up, a shell closes a descriptor: no result of a sweep depends on whether
somebody can read what it prints.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO


class OutputError(OSError):
    """Standard output cannot be written."""


class _Output(io.RawIOBase):
    """A descriptor to write to.

    Args:
        number: of the descriptor.
        is_lossy: whether bytes that cannot be written are dropped; else a write raises, BrokenPipeError if the reader
            has gone and OutputError otherwise.
    """

    def __init__(self, number: int, is_lossy: bool) -> None:
        super().__init__()
        self.number, self.is_lossy = number, is_lossy

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        try:
            return os.write(self.number, data)
        except BlockingIOError:  # somebody who shares this pipe has made it non-blocking, and it is full
            select.select([], [self.number], [])
            return self.write(data)
        except OSError as error:
            if self.is_lossy:
                return len(data)
            if error.errno == errno.EPIPE:
                raise
            raise OutputError(error.errno, error.strerror) from None


def open_streams() -> None:
    """Opens what the shell has closed, and lets the standard streams take every text, in UTF-8.

    An open descriptor 0, 1 or 2 is not given to the next file, into which everything printed would go. Standard error
    drops what cannot be written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
    sys.stdout = _open_stream(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _open_stream(sys.stderr, sys.__stderr__, 2)


def _open_stream(stream: Any, original: Any, number: int) -> Any:
    """The stream to use instead of a standard stream; the stream itself if somebody has replaced it."""
    if stream is None or stream is original:
        is_line_buffered = number == 2 or os.isatty(number)
        if stream is not None:
            with suppress(OSError):
                stream.flush()
            is_line_buffered = stream.line_buffering or stream.write_through
        buffer = io.BufferedWriter(_Output(number, is_lossy=number == 2))
        return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=is_line_buffered)
    if isinstance(stream, io.TextIOWrapper):  # under LANG=C it could not print what a file may hold
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    return stream


def print_wrapped(text: str, stream: TextIO | None = None) -> None:
    """Prints lines. A terminal gets long ones wrapped between words; elsewhere each stays one line.

    Args:
        text: lines, such as those of an error.
        stream: where to; None: standard output.
    """
    stream = stream or sys.stdout
    if stream is not None and stream.isatty():
        from qdtune.terminal import fit_line, terminal_width  # rich takes a tenth of a second

        width = terminal_width(stream) or sys.maxsize
        text = "\n".join(part for line in text.split("\n") for part in fit_line(line, width))
    print(text, file=stream, flush=True)


def drop_output() -> None:
    """From now on standard output drops what cannot be written, because no result depends on its reader."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output):
        raw.is_lossy = True
