"""The agreement between this machine and the head of a cluster: the id, command line and first line of a job.

It imports Ray only to reach a job server, so that importing it stays fast.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qdtune import __version__
from qdtune.messages import one_line, user_error

if TYPE_CHECKING:
    from qdtune.remote.job import Job
    from qdtune.remote.job_server import Jobs


ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # the environment variables of Ray's own commands
SWEEP_FILE = "sweep.yaml"  # the name of the sweep file that is sent
HEAD_LINE = f"qdtune {__version__} on the head"  # the first line of a job whose version fits


@contextmanager
def open_server(address: str, allow_proxy: bool) -> Iterator[Jobs]:
    """The job server at an address; turns each JobError of its block into a mistake of the user.

    Args:
        address: http://HOST:PORT.
        allow_proxy: whether requests may go through a proxy that the environment names.
    """
    from qdtune.sweep.cluster import set_environment

    set_environment(address)
    from qdtune.remote.job_server import JobError, Jobs  # imports Ray

    try:
        yield Jobs(address, allow_proxy)
    except JobError as error:
        raise user_error(str(error)) from None


def make_entrypoint(*arguments: str) -> str:
    """The command line of a job. It replaces the shell of the head, so that a stop signal reaches the sweep once."""
    return f"exec {shlex.join(['python', '-m', 'qdtune.commands.on_head', __version__, *arguments])}"


def next_id(name: str, known: Sequence[Job]) -> str:
    """`qdtune-NAME-N` with the next N. Two users who submit at once get equal ids; the server takes one."""
    pattern = re.compile(rf"qdtune-{re.escape(name)}-(\d+)")
    numbers = [int(found[1]) for job in known if (found := pattern.fullmatch(job.id))]
    return f"qdtune-{name}-{max(numbers, default=0) + 1}"


def explain_failure(log: str, code: int | None, message: str) -> tuple[list[str], int]:
    """Why a job failed before its sweep began, in lines, and the exit code; 2 if it is unknown."""
    why = [line for line in log.splitlines() if line.startswith("error: ")]
    if not why and ("No module named" in log or "not found" in log):
        what = f"the head must have qdtune {__version__} in the `python` of the environment that Ray was started in"
        why = [f"error: {what}: {last_line(log)}"]
    lines = why or [f"error: the job failed: {last_line(message) or 'no reason given'}"]
    exit_code = code if why and code in (2, 3, 4, 5) else 2
    return [one_line(line)[:1_000] for line in lines], exit_code


def last_line(text: str) -> str:
    """The last line that is not empty; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def find_job(server: Jobs, what: str) -> Job | None:
    """The job with this id; else the running job of a sweep with this name; else the last one that ran."""
    known = server.all()
    by_id = [job for job in known if job.id == what]
    by_name = sorted((job for job in known if job.name == what), key=lambda job: job.runs)
    return next(iter([*by_id, *by_name[::-1]]), None)
