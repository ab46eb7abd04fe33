"""`qdtune fetch`: the results of a sweep, from the head of a cluster to this machine.

They come as the log of a job that prints them, through the one port that there is. What comes is not trusted: names
and sizes are judged as it is unpacked, and every table as `qdtune verify` does it. Page and figures are drawn here.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qdtune.commands.job_parser import (
    EXIT_RUNNING,
    make_job_parser,
    print_command,
    print_failure,
    read_arguments,
    run_job_command,
)
from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import run_command
from qdtune.commands.verb import Verb
from qdtune.messages import format_count, one_line, user_error
from qdtune.remote.protocol import SWEEP_FILE, find_job, make_entrypoint, open_server
from qdtune.spec.sweep_file import loads
from qdtune.store.folder import check_location, storage_errors

VERB = Verb(place=8, text="copy the results of a submitted sweep here")
SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def main(argv: Sequence[str] | None = None) -> int:
    """Brings a run folder from a cluster and verifies it; returns the exit code, 3 where something is damaged."""
    parser = make_job_parser("fetch", "ID|NAME [--out DIR] [--runs-dir DIR]", "Brings the results of a sweep here.")
    parser.add_argument("job", metavar="ID|NAME", nargs="?", help="id of the job, or name of the sweep")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the run folder (default: runs)")
    parser.add_argument("--runs-dir", help="the --runs-dir of the submit, if the head no longer knows the job")
    parser.remote_paths = ("runs_dir",)
    return run_command(lambda: run_job_command(read_arguments(parser, argv, "job"), _fetch))


def _fetch(arguments: argparse.Namespace) -> int:
    _check_place(arguments.out)
    with open_server(arguments.address, arguments.allow_proxy) as server:
        job = find_job(server, arguments.job)
        if job and job.runs:
            print_wrapped(f"error: {job.id} still runs: wait for its end, or stop it first", sys.stderr)
            return EXIT_RUNNING
        name = job.name if job else arguments.job
        if not SWEEP_NAME.fullmatch(name):
            raise user_error(f"there is no job {one_line(name)} at {server.address} (qdtune jobs lists them)")
        target = arguments.out / name
        if target.is_file() or (target.exists() and any(target.iterdir()) and not (target / SWEEP_FILE).is_file()):
            raise user_error(
                f"{one_line(str(target))} must be a run folder or not be there, got something else (choose --out)"
            )
        where = arguments.runs_dir or (job.runs_dir if job else "")
        check_location(where)
        packing = f"qdtune-fetch-{secrets.token_hex(8)}"
        server.start(packing, make_entrypoint("pack", name, *([f"--runs-dir={where}"] if where else [])))
        server.wait(packing)
        (status, code, message), log = server.state(packing), server.log(packing)
        server.forget(packing)
    return _put_in_place(log, target) if status == "SUCCEEDED" else print_failure(log, code, message)


def _check_place(out: Path) -> None:
    """Raises where no folder can be made, or written to: the results would have come for nothing."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    given, found = one_line(str(out)), one_line(str(there))
    if not there.is_dir():
        raise user_error(f"--out must be a folder, or one that can be made, got {given}: {found} is none")
    if not os.access(there, os.W_OK | os.X_OK):
        raise user_error(f"--out must be a place to write to, got {given}: {found} is not")


def _put_in_place(log: str, target: Path) -> int:
    """Unpacks an archive, judges it, puts it in its place, verifies and draws it; what was there is set aside."""
    from qdtune.commands.report import draw_run
    from qdtune.commands.verify import check_run
    from qdtune.remote.archive import ArchiveError, unpack_lines
    from qdtune.store.opened import open_run
    from qdtune.store.store import Store

    os.umask(0o077)  # as a launch: for the user alone
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            fetched = unpack_lines(log.splitlines(), Path(folder) / "run")
            spec = loads((Path(folder) / "run" / SWEEP_FILE).read_bytes(), SWEEP_FILE)
            if spec.name != target.name:
                raise ArchiveError(f"the archive must be of {target.name}, got one of {spec.name}")
            if aside := Store(target).set_aside():
                print_wrapped(one_line(f"what was in {target} is now in {aside}"))
            os.rename(Path(folder) / "run", target)
    print_wrapped(f"{format_count(fetched.files, 'file')}, {fetched.size / 1e6:,.1f} MB")
    opened = open_run(target)
    with opened.store.lock():
        code = check_run(opened)
    for line in draw_run(str(target)):
        print_wrapped(line)
    print_command("to read it", f"qdtune report {shlex.quote(str(target))}")
    return code
