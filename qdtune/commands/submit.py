"""`qdtune submit`: a sweep on a cluster elsewhere, through the job server of its head.

A sweep file is judged here, and only it is sent, every default filled in; with `--allow-plugin` the module that it
names, too. qdtune itself is on the head and its nodes already. The token comes from the environment alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdtune.commands.job_parser import (
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_RUNNING,
    EXITS_BEFORE_START,
    make_job_parser,
    print_command,
    print_failure,
    read_arguments,
    run_job_command,
)
from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import run_command
from qdtune.commands.verb import Verb
from qdtune.messages import blame_source, printable, user_error
from qdtune.remote.protocol import HEAD_LINE, SWEEP_FILE, make_entrypoint, next_id, open_server
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, load
from qdtune.store.folder import check_location

if TYPE_CHECKING:
    from qdtune.remote.job_server import Jobs


VERB = Verb(place=5, text="send a sweep to a cluster")
START_TIMEOUT_S = 60.0  # in which a job should have begun, or else is left to itself


def main(argv: Sequence[str] | None = None) -> int:
    """Sends a sweep to a cluster, and follows it if asked to; returns the exit code, with --follow that of the sweep.

    Args:
        argv: the arguments after `submit`; those of the process if None.
    """
    parser = make_job_parser(
        "submit", "SWEEP [--follow] [--set KEY=VALUE ...] [--runs-dir DIR] [...]", "Sends a sweep to a cluster."
    )
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="sweep file (YAML)")
    parser.add_argument("--follow", action="store_true", help="print the output of the sweep until it ends")
    parser.add_argument(
        "--runs-dir",
        help="folder for run folders on the head, from its home folder (default: $QDTUNE_RUNS there, else runs)",
    )
    parser.add_argument(
        "--data-dir",
        help="folder of the data sets on the head, from its home folder (default: $QDTUNE_DATA there, else data)",
    )
    parser.remote_paths = ("runs_dir", "data_dir")
    parser.add_argument("--fresh", action="store_true", help="start over in a new run folder; the old one is renamed")
    parser.add_argument(
        "--allow-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="send this module along and allow its factories",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the sweep file")
    return run_command(lambda: run_job_command(read_arguments(parser, argv, "sweep"), _submit))


def _submit(arguments: argparse.Namespace) -> int:
    spec = load(arguments.sweep, arguments.set)
    with blame_source(arguments.sweep):
        files = {SWEEP_FILE: spec.to_yaml().encode()} | _read_modules(spec, arguments)
        if not spec.factories:
            plan(spec.resolve(spec.data.names[0]))
    where = arguments.runs_dir or ""
    check_location(where)
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    options = [f"--runs-dir={where}"] if where else []
    options += [f"--data-dir={arguments.data_dir}"] if arguments.data_dir else []
    options += ["--fresh"] if arguments.fresh else []
    options += [f"--allow-plugin={name}" for name in arguments.allow_plugin]
    with open_server(arguments.address, arguments.allow_proxy) as server:
        known = server.all()
        running = next((job for job in known if job.runs and (job.name, job.runs_dir) == (spec.name, where)), None)
        if running:
            same = running.sweep == digest and not arguments.fresh
            what = f"{spec.name} runs already, as {running.id}"
            if not same or not arguments.follow:
                how = " (--follow follows it)" if same else ", and not as this command would have it: stop it first"
                print_wrapped(f"error: {what}{how}", sys.stderr)
                return EXIT_RUNNING
            print_wrapped(what)
        job = running.id if running else next_id(spec.name, known)
        if not running:
            with tempfile.TemporaryDirectory() as folder:
                for name, data in files.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).write_bytes(data)
                about = {"name": spec.name, "runs_dir": where, "sweep": digest}
                server.start(job, make_entrypoint("launch", *options), Path(folder), about)
        return _follow(server, job, spec.name) if arguments.follow else _await_start(server, job)


def _read_modules(spec: Spec, arguments: argparse.Namespace) -> dict[str, bytes]:
    """The user's own code that a sweep names, by where it goes: the file of each, found where `launch` looks."""
    from qdtune.plugins import check_modules, permit

    folders = [Path(arguments.sweep).parent, Path.cwd()]
    permit(spec.factories, arguments.allow_plugin, folders)
    check_modules(arguments.allow_plugin)
    found: dict[str, bytes] = {}
    for group, factory in spec.factories.items():
        path = Path(*factory.partition(":")[0].split(".")).with_suffix(".py")
        home = next((folder for folder in folders if (folder / path).is_file()), None)
        if home is None:
            what = f"{factory} must be in a file {path} beside the sweep file or here, which is sent along"
            raise user_error(
                f"{what} (code that is installed on every node: qdtune launch on the head)", group, "factory"
            )
        packages = (parent / "__init__.py" for parent in path.parents[:-1])
        found |= {str(p): (home / p).read_bytes() for p in (path, *packages) if (home / p).is_file()}
    return found


def _await_start(server: Jobs, job: str) -> int:
    """Waits until a job is at work, and says how to go on; the exit code."""
    ended = server.wait(job, until=lambda: HEAD_LINE in server.log(job).splitlines(), seconds=START_TIMEOUT_S)
    status, code, message = server.state(job)
    if ended and status != "SUCCEEDED":
        return print_failure(server.log(job), code, message)
    print_wrapped(f"{job} {status.lower()} at {server.address}")
    if not ended:
        print_wrapped("to see its output: the same command with --follow")
        print_command("to stop it", f"qdtune stop {job} {server.options}")
    print_command("to bring its results here", f"qdtune fetch {job} {server.options}")
    return 0


def _follow(server: Jobs, job: str, name: str) -> int:
    """Prints what a job prints until it ends, and how to get its results; its exit code, 4 where its head is lost."""
    from qdtune.remote.job_server import LostError

    print_wrapped(f"following {job} (Ctrl-C ends the following, not the job); its files are on the head")
    lines = _LogPrinter()
    try:
        server.follow(job, lines.show, lambda line: print_wrapped(line, sys.stderr))
    except LostError as error:
        what = f"error: {error}; what was finished is kept there, the same command goes on from it"
        print_wrapped(what, sys.stderr)
        return EXIT_LOST
    except KeyboardInterrupt:
        print_wrapped(f"\n{job} goes on; to stop it:", sys.stderr)
        print(f"  qdtune stop {job} {server.options}", file=sys.stderr)
        return EXIT_INTERRUPTED
    status, code, message = server.state(job)
    if not lines.begun and status == "FAILED":
        return print_failure(lines.text, code, message)
    if status == "STOPPED":
        print_wrapped(f"{job} was stopped; the same command goes on from here")
    if code not in EXITS_BEFORE_START:
        print_command("these files are on the head; to bring them here", f"qdtune fetch {name} {server.options}")
    if status == "STOPPED":
        return EXIT_INTERRUPTED
    return code if code is not None and code >= 0 else EXIT_LOST


class _LogPrinter:
    """The lines of a job's log, printed from where our own begin; before that Ray speaks."""

    def __init__(self) -> None:
        self.begun, self.text, self.rest = False, "", ""

    def show(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if self.begun:
                print_wrapped(printable(line))
            else:
                self.text += f"{line}\n"
                self.begun = line == HEAD_LINE
