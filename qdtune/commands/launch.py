"""`qdtune launch SWEEP`: judges a sweep file, then says what it would run (`--dry-run`) or runs it.

Whatever the user got wrong ends here as one `error:` line per mistake and exit code 2, before Ray is imported and
before anything is written.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qdtune.commands.dry_run import describe
from qdtune.commands.output import drop_output
from qdtune.commands.parser import Parser, exit_now, print_error, run_command
from qdtune.commands.verb import Verb
from qdtune.machine import handle_signals
from qdtune.messages import one_line
from qdtune.sweep.prepare import prepare_launch
from qdtune.sweep.prepared import LaunchOptions
from qdtune.terminal import console, wrap_text

VERB = Verb(place=1, text="run a sweep, or finish it")
USAGE = "qdtune launch SWEEP [--dry-run [--all] [--time]] [--fresh] [--set KEY=VALUE ...] [--runs-dir DIR] [...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, finishes or describes a sweep; returns the exit code.

    Args:
        argv: the arguments after `launch`; those of the process if None.
    """
    return run_command(lambda: _launch(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("launch", USAGE, "Runs, or finishes, a sweep.")
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="sweep file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and start nothing")
    parser.add_argument("--all", action="store_true", help="list every configuration of a dry run")
    parser.add_argument(
        "--time",
        action="store_true",
        help="train a few configurations of a dry run for some steps, to time the sweep",
    )
    parser.add_argument(
        "--runs-dir", default="runs", help="folder for run folders: a path, or s3://BUCKET/PREFIX (default: runs)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets (default: QDTUNE_DATA, else data)")
    parser.add_argument("--address", help="address of a running Ray cluster (default: start a local one)")
    parser.add_argument("--no-dashboard", action="store_true", help="start Ray without its dashboard")
    parser.add_argument("--fresh", action="store_true", help="start over in a new run folder; the old one is renamed")
    parser.add_argument(
        "--allow-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="allow the sweep file to use factories from this module",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the sweep file, such as train.qat.epochs=3",
    )
    arguments = parser.read(argv)
    if not arguments.sweep:
        parser.error("no sweep file given")
    for flag, is_given in (("--all", arguments.all), ("--time", arguments.time)):
        if is_given and not arguments.dry_run:
            parser.error(f"{flag} needs --dry-run")
    return arguments


def _launch(arguments: argparse.Namespace) -> int:
    options = LaunchOptions(
        sweep=arguments.sweep,
        overrides=arguments.set,
        plugins=arguments.allow_plugin,
        runs_dir=arguments.runs_dir,
        data_dir=arguments.data_dir,
        address=arguments.address or os.environ.get("RAY_ADDRESS") or None,
        is_fresh=arguments.fresh,
        is_dry=arguments.dry_run,
    )
    if options.is_dry:
        describe(options, arguments.all, arguments.time)
        return 0
    return _run(options, has_dashboard=not arguments.no_dashboard)


def _run(options: LaunchOptions, has_dashboard: bool) -> int:
    try:
        return launch_sweep(options, has_dashboard)
    except (ValueError, OSError) as error:
        return _explain(error)


@contextmanager
def _stop_at_signal() -> Iterator[None]:
    """Ends the process with one line at a signal before or after the sweep, which has handlers of its own."""

    def handle(number: int, frame: Any) -> None:
        with suppress(OSError, ValueError):  # the terminal may be gone
            print(f"stopped by {signal.Signals(number).name}; the same command goes on from here", file=sys.stderr)
        exit_now(128 + number)

    with handle_signals(handle):
        yield


@_stop_at_signal()
def launch_sweep(options: LaunchOptions, has_dashboard: bool) -> int:
    """Prepares and runs a sweep, in the order of imports that Ray needs; the exit code.

    A signal that stops the sweep ends the process.

    Raises:
        ValueError, OSError: as `prepare_launch` and `run_sweep`.
    """
    drop_output()
    prepared = prepare_launch(options)
    from qdtune.sweep import cluster

    cluster.set_environment(options.address)  # before anything imports Ray
    from qdtune.report.follow import drawing
    from qdtune.sweep import session

    ray_at = cluster.RayAt(options.address, dashboard=has_dashboard)
    code = session.run_sweep(prepared, ray_at=ray_at, drawing=drawing)
    if code > 128:
        exit_now(code)  # Ray may have been interrupted half way, and then it crashes as the interpreter ends
    _print_conclusions(prepared.folder)
    return code


def _print_conclusions(folder: str) -> None:
    """Prints the best configuration and the verdicts in sum, if the sweep is finished; a failure costs one line."""
    from qdtune.analysis.run import Run, RunError, load_run
    from qdtune.report.conclusions import sum_up

    out = console()
    try:
        run: Run = load_run(folder)
        lines = [] if run.left else sum_up(run.answers())
        more = [f"more: qdtune report {shlex.quote(one_line(folder))}"] if lines else []
    except RunError:  # nothing has finished, which the summary says
        return
    except (ValueError, OSError) as error:
        lines, more = [f"no conclusions are printed: {one_line(str(error))}"], []
    for line in lines:
        for part in wrap_text(line, out.width) if out.is_terminal else [line]:
            out.print(part)
    for line in more:  # to be pasted as it is
        out.print(line, soft_wrap=True)


def _explain(error: Exception) -> int:
    """Says in one line what stands in the way of a launch; the exit code.

    Raises:
        Exception: the error itself, if it is a mistake in the sweep file or none of those that a launch may meet.
    """
    from qdtune.datasets.dataset import DataError
    from qdtune.store.folder import StorageError
    from qdtune.store.store import FAULTS
    from qdtune.sweep.cluster import NoClusterError

    codes: dict[type[Exception], int] = {DataError: 2, NoClusterError: 2, **FAULTS}
    if not isinstance(error, tuple(codes)):
        raise error
    if isinstance(error, StorageError):
        error = StorageError(f"{error}: mend that and run the same command again, what was finished is kept")
    return print_error(error, codes)
