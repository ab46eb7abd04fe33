"""`qdtune submit|jobs|stop`: sweeps on a cluster elsewhere, through the job server of its head.

A sweep file is judged here, and only it is sent, every default filled in; with `--allow-plugin` the module that it
names, too. qdtune itself is on the head and its nodes already. The token comes from the environment alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from qdtune import __version__
from qdtune.cli import Parser, blaming, guarded, told
from qdtune.head import HERE, SWEEP
from qdtune.plan import plan
from qdtune.rules import mistake, one_line, printable
from qdtune.spec import Spec, load
from qdtune.storage import check_location

if TYPE_CHECKING:
    from qdtune.jobs import Job, Jobs

LOST, RUNNING, INTERRUPTED = 4, 5, 130  # exit codes: its driver or its head is gone; the run folder is in use; Ctrl-C
LEFT = re.compile(r"^stopped by .*: (\d+) of (\d+) trials? left to do", re.MULTILINE)  # as `session` has it
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # where Ray's own commands look for an address
MISTAKEN = (2, RUNNING)  # those with which a sweep has not begun
START_S = 60.0  # in which a job should have begun, or else is left to itself


def submit(argv: Sequence[str] | None = None) -> int:
    """Sends a sweep to a cluster, and follows it if asked to; returns the exit code, with --follow that of the sweep.

    Args:
        argv: the arguments after `submit`; those of the process if None.
    """
    parser = parser_of(
        "submit", "SWEEP [--follow] [--set KEY=VALUE ...] [--runs-dir DIR] [...]", "Sends a sweep to a cluster."
    )
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="the sweep file (YAML)")
    parser.add_argument("--follow", action="store_true", help="print what it prints until it ends")
    parser.add_argument(
        "--runs-dir", help="on the head, from its home folder (default: $QDTUNE_RUNS there, else runs)"
    )
    parser.add_argument(
        "--data-dir", help="on the head, from its home folder (default: $QDTUNE_DATA there, else data)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over: do not keep what the run folder holds")
    parser.add_argument(
        "--allow-plugin", action="append", default=[], metavar="MODULE", help="send this module along"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the file")
    return guarded(lambda: asked(read(parser, argv, "sweep"), _submit))


def jobs(argv: Sequence[str] | None = None) -> int:
    """Lists the sweeps that were submitted to a cluster; returns the exit code."""
    return guarded(lambda: asked(read(parser_of("jobs", "", "Lists submitted sweeps."), argv), _list))


def stop(argv: Sequence[str] | None = None) -> int:
    """Stops a submitted sweep in order, so that it can go on later; returns the exit code."""
    parser = parser_of("stop", "ID", "Stops a submitted sweep in order.")
    parser.add_argument("job", metavar="ID", nargs="?", help="of the job, or the name of the sweep")
    return guarded(lambda: asked(read(parser, argv, "job"), _stop))


def parser_of(command: str, usage: str, description: str) -> Parser:
    """The parser of a command that asks a job server, for the options of its own to be added."""
    usage = " ".join(filter(None, ["qdtune", command, usage, "--address http://HOST:8265"]))
    parser = Parser(command, usage, description)
    what = f"of the job server of a Ray cluster: http://HOST:8265 (default: ${ADDRESSES[0]})"
    parser.add_argument("--address", help=what)
    return parser


def read(parser: Parser, argv: Sequence[str] | None, wanted: str | None = None) -> argparse.Namespace:
    """The arguments, judged: an address, and the one that is `wanted`."""
    arguments = parser.read(argv)
    if wanted and not getattr(arguments, wanted):
        parser.error(f"no {wanted} given")
    arguments.address = arguments.address or next(filter(None, map(_http, ADDRESSES)), None)
    if not arguments.address:
        parser.error(f"no --address given, and none in {ADDRESSES[0]}")
    return arguments


def _http(variable: str) -> str:
    """The address of a job server in an environment variable, "" where there is none: HOST:6379 is not one."""
    address = os.environ.get(variable, "")
    return address if address.startswith(("http://", "https://")) else ""


def asked(arguments: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    """The exit code of a command; what is wrong with a run folder or an archive is told in one line."""
    from qdtune.archive import ArchiveError
    from qdtune.store import FAULTS

    codes: dict[type[Exception], int] = {ArchiveError: 4, **FAULTS}
    try:
        return command(arguments)
    except tuple(codes) as error:
        return told(error, codes)


@contextmanager
def server_at(address: str) -> Iterator[Jobs]:
    """The job server at an address; what is wrong with it, or with a job, is a mistake of the user's."""
    from qdtune.cluster import prepare

    prepare(address)
    from qdtune.jobs import JobError, Jobs  # Ray

    try:
        yield Jobs(address)
    except JobError as error:
        raise mistake(str(error)) from None


def _submit(arguments: argparse.Namespace) -> int:
    spec = load(arguments.sweep, arguments.set)
    with blaming(arguments.sweep):
        files = {SWEEP: spec.to_yaml().encode()} | _modules(spec, arguments)
        if not spec.factories:
            plan(spec.resolve(spec.data.names[0]))
    where = arguments.runs_dir or ""
    check_location(where)
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    options = [f"--runs-dir={where}"] if where else []
    options += [f"--data-dir={arguments.data_dir}"] if arguments.data_dir else []
    options += ["--fresh"] if arguments.fresh else []
    options += [f"--allow-plugin={name}" for name in arguments.allow_plugin]
    with server_at(arguments.address) as server:
        known = server.all()
        running = next((job for job in known if job.runs and (job.name, job.runs_dir) == (spec.name, where)), None)
        if running:
            same = running.sweep == digest and not arguments.fresh
            what = f"{spec.name} runs already, as {running.id}"
            if not same or not arguments.follow:
                how = " (--follow follows it)" if same else ", and not as this command would have it: stop it first"
                print(f"error: {what}{how}", file=sys.stderr)
                return RUNNING
            print(what)
        job = running.id if running else _next_id(spec.name, known)
        if not running:
            with tempfile.TemporaryDirectory() as folder:
                for name, data in files.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).write_bytes(data)
                about = {"name": spec.name, "runs_dir": where, "sweep": digest}
                server.start(job, entrypoint("launch", *options), Path(folder), about)
        return _follow(server, job, spec.name) if arguments.follow else _begun(server, job)


def _modules(spec: Spec, arguments: argparse.Namespace) -> dict[str, bytes]:
    """The user's own code that a sweep names, by where it goes: the file of each, found where `launch` looks."""
    from qdtune.plugins import permit

    folders = [Path(arguments.sweep).parent, Path.cwd()]
    permit(spec, arguments.allow_plugin, folders)
    found: dict[str, bytes] = {}
    for group, factory in spec.factories.items():
        path = Path(*factory.partition(":")[0].split(".")).with_suffix(".py")
        home = next((folder for folder in folders if (folder / path).is_file()), None)
        if home is None:
            what = f"{factory} must be in a file {path} beside the sweep file or here, which is sent along"
            raise mistake(
                f"{what} (code that is installed on every node: qdtune launch on the head)", group, "factory"
            )
        packages = (parent / "__init__.py" for parent in path.parents[:-1])
        found |= {str(p): (home / p).read_bytes() for p in (path, *packages) if (home / p).is_file()}
    return found


def entrypoint(*arguments: str) -> str:
    """What the head's shell runs, in the place of itself: a signal to stop then reaches the sweep, once."""
    return f"exec {shlex.join(['python', '-m', 'qdtune.head', __version__, *arguments])}"


def _next_id(name: str, known: Sequence[Job]) -> str:
    """`qdtune-NAME-N`, the next N: two that submit at once ask for the same id, of which the server takes one."""
    pattern = re.compile(rf"qdtune-{re.escape(name)}-(\d+)")
    numbers = [int(found[1]) for job in known if (found := pattern.fullmatch(job.id))]
    return f"qdtune-{name}-{max(numbers, default=0) + 1}"


def _begun(server: Jobs, job: str) -> int:
    """Waits until a job is at work, and says how to go on; the exit code."""
    ended = server.wait(job, until=lambda: HERE in server.log(job).splitlines(), seconds=START_S)
    status, code, message = server.state(job)
    if ended and status != "SUCCEEDED":
        return failed(server.log(job), code, message)
    print(f"{job} {status.lower()} at {server.address}; with the same --address\n  qdtune stop {job}   stops it")
    print(f"  qdtune fetch {job}   brings its results")
    return 0


def _follow(server: Jobs, job: str, name: str) -> int:
    """Prints what a job prints until it ends, and how to get its results; its exit code, 4 where its head is lost."""
    from qdtune.jobs import LostError

    print(f"following {job} (Ctrl-C ends the following, not the job)", flush=True)
    lines = _Lines()
    try:
        server.follow(job, lines.show, lambda line: print(line, file=sys.stderr, flush=True))
    except LostError as error:
        print(f"error: {error}; what was finished is kept there, the same command goes on from it", file=sys.stderr)
        return LOST
    except KeyboardInterrupt:
        print(f"\n{job} goes on; qdtune stop {job} --address {server.address} stops it", file=sys.stderr)
        return INTERRUPTED
    status, code, message = server.state(job)
    if not lines.begun and status == "FAILED":
        return failed(lines.text, code, message)
    if status == "STOPPED":
        print(f"{job} was stopped; the same command goes on from here")
    if code not in MISTAKEN:
        print(f"to bring it here: qdtune fetch {name} --address {server.address} --out runs")
    if status == "STOPPED":
        return INTERRUPTED
    return code if code is not None and code >= 0 else LOST


class _Lines:
    """The lines of a job's log, printed from where our own begin; before that Ray speaks."""

    def __init__(self) -> None:
        self.begun, self.text, self.rest = False, "", ""

    def show(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if self.begun:
                print(printable(line), flush=True)
            else:
                self.text += f"{line}\n"
                self.begun = line == HERE


def failed(log: str, code: int | None, message: str) -> int:
    """Says why a job has failed that never came to work; the exit code, 2 where none is known."""
    why = [line for line in log.splitlines() if line.startswith("error: ")]
    if not why and ("No module named" in log or "not found" in log):
        what = f"the head must have qdtune {__version__} in the `python` of the environment that Ray was started in"
        why = [f"error: {what}: {_last(log)}"]
    for line in why or [f"error: the job failed: {_last(message) or 'no reason given'}"]:
        print(one_line(line)[:1_000], file=sys.stderr)
    return code if why and code in (2, 3, 4, 5) else 2


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _list(arguments: argparse.Namespace) -> int:
    with server_at(arguments.address) as server:
        known = server.all()
        how = {job.id: _how_it_ended(server, job) for job in known}
    rows = [("job", "status", "started (UTC)", "how it ended")]
    for job in known:
        began = (
            datetime.fromtimestamp(job.started, timezone.utc).strftime("%Y-%m-%d %H:%M:%S") if job.started else "-"
        )
        rows.append((job.id, job.status, began, how[job.id]))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for row in rows if known else []:
        cells = [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
        line = one_line("  ".join(cells)).rstrip()
        print(line if len(line) <= room else f"{line[: room - 1]}…")
    if not known:
        print(f"no sweep was submitted to {arguments.address}")
    return 0


def _how_it_ended(server: Jobs, job: Job) -> str:
    """A few words; of one that was stopped, how far it says that it came."""
    if job.status == "STOPPED":
        left = LEFT.findall(server.log(job.id))
        return f"{int(left[-1][1]) - int(left[-1][0])} of {left[-1][1]} done" if left else ""
    return "" if job.code is None else f"exit code {job.code}" + (f": {_last(job.message)}" if job.code else "")


def found_job(server: Jobs, what: str) -> Job | None:
    """The job of this id, else the one that runs a sweep of this name, else the last that did."""
    known = server.all()
    by_id = [job for job in known if job.id == what]
    by_name = sorted((job for job in known if job.name == what), key=lambda job: job.runs)
    return next(iter([*by_id, *by_name[::-1]]), None)


def _stop(arguments: argparse.Namespace) -> int:
    with server_at(arguments.address) as server:
        job = found_job(server, arguments.job)
        if job is None:
            raise mistake(f"there is no job {one_line(arguments.job)} at {server.address} (qdtune jobs lists them)")
        if job.runs:
            print(f"stopping {job.id} in order", flush=True)
            server.stop(job.id)
            server.wait(job.id)  # Ray kills what takes too long
            status, code, _ = server.state(job.id)
            job = job._replace(status=status, code=code)
        again = "" if job.status == "SUCCEEDED" or job.code in MISTAKEN else "; the same submit goes on from here"
        print(f"{job.id} has ended: {job.status}{again}")
    return 0
