"""What the commands that ask a job server have in common: arguments, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import Parser, print_error
from qdtune.messages import one_line
from qdtune.remote.protocol import ADDRESSES, explain_failure

# Exit codes: the driver or the head of a job is gone; the run folder is in use; Ctrl-C.
EXIT_LOST, EXIT_RUNNING, EXIT_INTERRUPTED = 4, 5, 130
EXITS_BEFORE_START = (2, EXIT_RUNNING)  # those with which a sweep has not begun


def make_job_parser(command: str, usage: str, description: str) -> Parser:
    """The parser of a command that asks a job server, for the options of its own to be added."""
    usage = " ".join(filter(None, ["qdtune", command, usage, "--address http://HOST:8265"]))
    parser = Parser(command, usage, description)
    what = f"job server of a Ray cluster: http://HOST:8265 (default: ${ADDRESSES[0]})"
    parser.add_argument("--address", help=what)
    parser.add_argument(
        "--allow-proxy", action="store_true", help="send requests through the proxy that http_proxy sets"
    )
    return parser


def read_arguments(parser: Parser, argv: Sequence[str] | None, wanted: str | None = None) -> argparse.Namespace:
    """The arguments, judged: an address, and the one that is `wanted`."""
    arguments = parser.read(argv)
    if wanted and not getattr(arguments, wanted):
        parser.error(f"no {wanted} given")
    arguments.address = arguments.address or next(filter(None, map(_read_address, ADDRESSES)), None)
    if not arguments.address:
        parser.error(f"no --address given, and none in {ADDRESSES[0]}")
    return arguments


def _read_address(variable: str) -> str:
    """The address of a job server in an environment variable, "" where there is none: HOST:6379 is not one."""
    address = os.environ.get(variable, "")
    return address if address.startswith(("http://", "https://")) else ""


def run_job_command(arguments: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    """The exit code of a command; what is wrong with a run folder or an archive is told in one line."""
    from qdtune.remote.archive import ArchiveError
    from qdtune.store.store import FAULTS

    codes: dict[type[Exception], int] = {ArchiveError: 4, **FAULTS}
    try:
        return command(arguments)
    except tuple(codes) as error:
        return print_error(error, codes)


def print_failure(log: str, code: int | None, message: str) -> int:
    """Prints why a job failed before its sweep began; the exit code of the command."""
    lines, exit_code = explain_failure(log, code, message)
    for line in lines:
        print_wrapped(line, sys.stderr)
    return exit_code


def print_command(what: str, command: str) -> None:
    """Prints what a command is for, and the command on a line of its own, whole, so that it can be pasted."""
    print_wrapped(f"{what}:")
    print(f"  {one_line(command)}", flush=True)
