"""The console: text, tables and a live screen; plain lines if stdout is no terminal. The home of rich."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qdtune.messages import printable

_UNIT = re.compile(r"(?<=\d) (?=%|(?:byte|bit|seed|point)s?\b)|(?<=\bdepth) (?=\d)")  # the space before a unit
PLAIN_WIDTH, FACTS_WIDTH = 160, 80  # characters of a log and of facts if stdout is no terminal
GAP_WIDTH = 2  # characters between two columns of a table
MAX_WORD = 20  # characters of a word that a column has room for, however narrow the terminal
MAX_WIDTH = 10_000  # characters of a text that nobody has to fit into a window


def console() -> Console:
    """The console of stdout. If that is no terminal, tables may be wide and sentences stay on one line."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    # No markup, because a path may contain square brackets.
    width = None if terminal else PLAIN_WIDTH
    return _Console(width=width, highlight=False, markup=False, soft_wrap=not terminal, force_jupyter=False)


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does, without control characters, so that texts from files cannot steer the terminal.

        A table that is too wide keeps all of each line, which the terminal wraps: no number loses a digit.
        """
        for table in (o for o in objects if isinstance(o, Table)):
            least = sum((column.min_width or 1) + GAP_WIDTH for column in table.columns) - GAP_WIDTH
            table.width = least if least > self.width else None
            options.setdefault("crop", False)
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def on_broken_pipe(self) -> None:
        """Stops printing, because a reader that closes the pipe, as `| head` does, must not end the sweep."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def wrap_text(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of a text in which no number is parted from its unit, nor a depth from its number.

    Args:
        text: one paragraph.
        width: characters of a line; a longer word has a longer line.
        indent: what all lines but the first begin with.
    """
    wrapper = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in wrapper.wrap(_UNIT.sub("\u00a0", text))]


def terminal_width(stream: TextIO | None) -> int | None:
    """The characters of a line of the terminal behind a stream; None if there is no terminal."""
    if stream is None or not stream.isatty():
        return None
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or FACTS_WIDTH
    except (OSError, ValueError):  # a stream that only says it is a terminal
        return FACTS_WIDTH


def fit_line(line: str, width: int) -> list[str]:
    """A line in lines of `width` characters; a row of a table, whose columns are two spaces apart, stays as it is."""
    is_row = "  " in line.strip()
    return [line] if len(line) <= width or is_row else wrap_text(line, width, "  ")


def is_live_console(out: Console) -> bool:
    """Whether lines may be drawn again on this console: its stream is a terminal.

    rich also takes a log for a terminal if FORCE_COLOR or TTY_COMPATIBLE is set, and every refresh would stay in it.
    """
    return out.is_terminal and out.file.isatty()


def text_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    left: Iterable[str] = (),
    folded: Iterable[str] = (),
) -> Table:
    """A text table for `console().print`.

    Args:
        heads: the heads of the columns.
        rows: the cells; as many as there are heads.
        title: the line above it.
        left: heads of the left-aligned columns; other columns are right-aligned.
        folded: heads of the columns that may take several lines; they are left-aligned too. They alone give way if
            the table is too wide.
    """
    lines = [list(cells) for cells in rows]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head, *column in zip(heads, *lines, strict=True):
        if head in folded:
            longest = max(len(word) for cell in (head, *column) for word in cell.split() or [""])
            table.add_column(head, overflow="fold", min_width=min(longest, MAX_WORD))
        else:
            width = max(map(len, (head, *column)))
            table.add_column(head, justify="left" if head in left else "right", no_wrap=True, min_width=width)
    for cells in lines:
        table.add_row(*cells)
    return table


def table_width(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """The characters that a `text_table` takes if none of its cells is folded."""
    return sum(max(map(len, column)) + GAP_WIDTH for column in zip(heads, *rows, strict=True)) - GAP_WIDTH


def draw_text(table: Table) -> str:
    """A `text_table` as plain text that is as wide as it needs to be."""
    # In a notebook rich would also show what is captured, as an output of the cell.
    plain = Console(width=MAX_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with plain.capture() as captured:
        plain.print(table)
    return captured.get().rstrip("\n")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints (name, text) pairs in two columns."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(name, Text(text))  # Text, so that square brackets are no markup
    plain = Console(width=None if terminal else FACTS_WIDTH, highlight=False, force_jupyter=False)
    with plain.capture() as captured:  # printed below, because rich would end the process if the pipe is closed
        plain.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


class Screen:
    """A live progress bar with text and tables below it; draws nothing if there is no terminal.

    Args:
        out: the console.
        noun: the things that are counted.
        total, done: their number, and the number of those done.
        below: returns the lines and tables below the bar; called at each refresh.
    """

    def __init__(self, out: Console, noun: str, total: int, done: int, below: Callable[[], list[Any]]) -> None:
        self.below = below
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), console=out
        )
        self.task = self.bar.add_task(noun, total=total, completed=done)
        self.live = (
            Live(console=out, get_renderable=self._make_group, refresh_per_second=4) if is_live_console(out) else None
        )

    @property
    def is_live(self) -> bool:
        """Whether it draws."""
        return self.live is not None

    def start(self) -> None:
        """Starts to draw."""
        if self.live:
            self.live.start()

    def stop(self) -> None:
        """Draws one last time."""
        if self.live:
            self.live.stop()

    def update(self, done: int, total: int) -> None:
        """Sets the bar."""
        self.bar.update(self.task, completed=done, total=total)

    def _make_group(self) -> Group:
        return Group(self.bar, *(_make_line(part) if isinstance(part, str) else part for part in self.below()))


def _make_line(text: str) -> Text:
    # An indented line is a detail.
    style, overflow = ("dim", "ellipsis") if text.startswith(" ") else ("", "fold")
    return Text(text, style=style, no_wrap=text.startswith(" "), overflow=overflow)  # type: ignore[arg-type]
