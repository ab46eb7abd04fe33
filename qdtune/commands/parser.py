"""What the commands have in common: how arguments are read, and how a mistake ends."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from qdtune.commands.output import OutputError, drop_output, open_streams, print_wrapped
from qdtune.machine import expand_home
from qdtune.messages import SpecError, describe_unknown, format_value, one_line, user_error

FILE_ARGUMENTS = ("run", "runs", "out", "runs_dir", "data_dir")  # arguments that name folders or files
USAGE_PART = re.compile(r"\[[^]]*\]|\([^)]*\)|--[\w-]+ [^\s[(]+|\S+")  # what stays on one line of a usage
EXIT_STORAGE = 4  # the storage failed, or what a command prints has no room


class Parser(argparse.ArgumentParser):
    """argparse with our way to say what is wrong.

    Args:
        command: its name.
        usage: the line that a mistake is answered with and `--help` begins with.
        description: the sentence below it in `--help`.

    Attributes:
        remote_paths: the names of arguments that are paths on another machine.
    """

    remote_paths: tuple[str, ...] = ()

    def __init__(self, command: str, usage: str, description: str) -> None:
        super().__init__(prog=f"qdtune {command}", description=description, allow_abbrev=False)
        self.line = usage

    def format_help(self) -> str:
        """argparse's help with our usage line: in its own one, an argument that a command needs looks optional."""
        parts = [part.replace(" ", "\0") for part in USAGE_PART.findall(self.line.replace("%", "%%"))]
        width = max(shutil.get_terminal_size().columns - 2, 20)
        lines = textwrap.wrap(
            "usage: " + " ".join(parts),
            width,
            subsequent_indent=" " * len(f"usage: {self.prog} "),
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.usage = "\n".join(lines).replace("\0", " ").removeprefix("usage: ")
        return super().format_help()

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The value of an argument, checked here because argparse's own words name Python's types."""
        name = action.option_strings[0] if action.option_strings else action.metavar
        if not arg_string and action.dest in FILE_ARGUMENTS:
            self.error(f"{name} must name a folder or file, got an empty name")
        if action.type is int:
            try:
                return int(arg_string)
            except ValueError:
                self.error(f"{name} must be a whole number, got {format_value(arg_string)}")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.metavar
            self.error(f"{name}: {describe_unknown('', str(value), list(action.choices))}")

    def error(self, message: str) -> NoReturn:
        raise user_error(f"{one_line(message)} (usage: {self.line})")

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments, those of the process if `argv` is None.

        Raises:
            SpecError: an option that is not known, or an argument too many.
        """
        arguments, others = self.parse_known_args(sys.argv[1:] if argv is None else argv)
        options = [
            option for action in self._actions if action.help != argparse.SUPPRESS for option in action.option_strings
        ]
        for other in others:
            if other.startswith("-"):
                raise user_error(describe_unknown("option ", other.partition("=")[0], options))
        if others:
            self.error(f"one argument too many: {others[0]!r}")
        for name, value in vars(arguments).items():
            # A shell leaves the ~ of --out=~/a as it is. Only paths begin with one.
            if isinstance(value, str | Path) and name not in self.remote_paths:
                setattr(arguments, name, type(value)(expand_home(str(value))))
        return arguments


def run_command(command: Callable[[], int]) -> int:
    """The exit code of a command; a mistake of the user is told in one line each, wrapped on a terminal,
    and gives 2."""
    open_streams()
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that went away shows here and not at exit
        return code
    except SpecError as error:
        print_wrapped(str(error), sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after a sweep, which has its own way to stop
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        drop_output()
        return 0
    except OutputError as error:
        drop_output()
        print_wrapped(f"error: standard output cannot be written: {error.strerror}", sys.stderr)
        return EXIT_STORAGE


def print_error(error: Exception, codes: Mapping[type[Exception], int]) -> int:
    """Says an error in one line, wrapped on a terminal; the exit code that `codes` gives its kind."""
    print_wrapped(f"error: {one_line(str(error))}", sys.stderr)
    return next(code for kind, code in codes.items() if isinstance(error, kind))


def exit_now(code: int) -> NoReturn:
    """Ends the process at once with this exit code; what was printed is printed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
    os._exit(code)
