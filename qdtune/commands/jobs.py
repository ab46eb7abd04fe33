"""`qdtune jobs`: the sweeps that were sent to a cluster."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from qdtune.commands.job_parser import make_job_parser, read_arguments, run_job_command
from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import run_command
from qdtune.commands.verb import Verb
from qdtune.messages import one_line
from qdtune.remote.protocol import last_line, open_server
from qdtune.terminal import terminal_width

if TYPE_CHECKING:
    from qdtune.remote.job import Job
    from qdtune.remote.job_server import Jobs


VERB = Verb(place=6, text="list the submitted sweeps")
PIPE_COLUMNS, MIN_COLUMNS = 120, 30  # of a line that goes to no terminal; of the last cell, on however narrow a one
SENT_FOLDER = re.compile(r"\S*/_ray_pkg_\w+/")  # where Ray unpacks what was sent
# The line of `SweepProgress`.
DONE_LINE = re.compile(r"^(\d+)/(\d+) done\b(?:[^;\n]*, (about \d+ (?:min|s) left))?", re.MULTILINE)
LEFT_LINE = re.compile(r"^stopped by .*: (\d+) of (\d+) trials? left to do", re.MULTILINE)  # as `session` has it


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the sweeps that were submitted to a cluster; returns the exit code."""
    return run_command(
        lambda: run_job_command(
            read_arguments(make_job_parser("jobs", "", "Lists submitted sweeps."), argv), _list_jobs
        )
    )


def _list_jobs(arguments: argparse.Namespace) -> int:
    with open_server(arguments.address, arguments.allow_proxy) as server:
        known = server.all()
        how = {job.id: _describe_progress(server, job) for job in known}
    rows = [("job", "status", "started (UTC)", "progress or end")]
    for job in known:
        began = (
            datetime.fromtimestamp(job.started, timezone.utc).strftime("%Y-%m-%d %H:%M:%S") if job.started else "-"
        )
        rows.append((job.id, job.status, began, how[job.id]))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    columns = terminal_width(sys.stdout) or PIPE_COLUMNS
    for row in rows if known else []:
        start = one_line("".join(f"{cell:{width}}  " for cell, width in zip(row, widths, strict=False)))
        room = max(columns - len(start), MIN_COLUMNS)
        first, *more = textwrap.wrap(one_line(row[3]), room) or [""]
        print(f"{start}{first}".rstrip())
        for line in more:
            print(" " * len(start) + line)
    if not known:
        print_wrapped(f"no sweep was submitted to {arguments.address}")
    return 0


def _describe_progress(server: Jobs, job: Job) -> str:
    """A few words: how far a job is, how far one came that was stopped, or how it ended."""
    if job.status == "RUNNING":
        done = list(DONE_LINE.finditer(server.log(job.id)))
        return ", ".join(filter(None, [f"{done[-1][1]} of {done[-1][2]} done", done[-1][3]])) if done else "starting"
    if job.status == "STOPPED":
        left = LEFT_LINE.findall(server.log(job.id))
        return f"{int(left[-1][1]) - int(left[-1][0])} of {left[-1][1]} done" if left else ""
    if not job.code:
        return "" if job.code is None else f"exit code {job.code}"
    return f"exit code {job.code}: {SENT_FOLDER.sub('', last_line(job.message))}"
