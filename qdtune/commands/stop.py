"""`qdtune stop`: stops one of the sweeps on a cluster, which can go on later."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qdtune.commands.job_parser import EXITS_BEFORE_START, make_job_parser, read_arguments, run_job_command
from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import run_command
from qdtune.commands.verb import Verb
from qdtune.messages import one_line, user_error
from qdtune.remote.protocol import find_job, open_server

VERB = Verb(place=7, text="stop a submitted sweep")


def main(argv: Sequence[str] | None = None) -> int:
    """Stops a submitted sweep, which writes its last results first; returns the exit code."""
    parser = make_job_parser("stop", "ID|NAME", "Stops a submitted sweep. The same submit resumes it.")
    parser.add_argument("job", metavar="ID|NAME", nargs="?", help="id of the job, or name of the sweep")
    return run_command(lambda: run_job_command(read_arguments(parser, argv, "job"), _stop))


def _stop(arguments: argparse.Namespace) -> int:
    with open_server(arguments.address, arguments.allow_proxy) as server:
        job = find_job(server, arguments.job)
        if job is None:
            raise user_error(
                f"there is no job {one_line(arguments.job)} at {server.address} (qdtune jobs lists them)"
            )
        if job.runs:
            print_wrapped(f"stopping {job.id}: it writes its last results first")
            server.stop(job.id)
            server.wait(job.id)  # Ray kills what takes too long
            status, code, _ = server.state(job.id)
            job = job._replace(status=status, code=code)
        again = (
            ""
            if job.status == "SUCCEEDED" or job.code in EXITS_BEFORE_START
            else "; the same submit goes on from here"
        )
        print_wrapped(f"{job.id} has ended: {job.status}{again}")
    return 0
