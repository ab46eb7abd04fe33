"""What a submitted job is called, runs and answers, agreed between this machine and the head of a cluster.

Light: Ray is imported where a job server is asked.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qdtune import __version__
from qdtune.messages import one_line, user_error

if TYPE_CHECKING:
    from qdtune.remote.job_server import Job, Jobs


ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # where Ray's own commands look for an address


@contextmanager
def server_at(address: str) -> Iterator[Jobs]:
    """The job server at an address; what is wrong with it, or with a job, is a mistake of the user's."""
    from qdtune.sweep.cluster import set_environment

    set_environment(address)
    from qdtune.remote.job_server import (
        JobError,
        Jobs,  # Ray
    )

    try:
        yield Jobs(address)
    except JobError as error:
        raise user_error(str(error)) from None


def entrypoint(*arguments: str) -> str:
    """What the head's shell runs, in the place of itself: a signal to stop then reaches the sweep, once."""
    return f"exec {shlex.join(['python', '-m', 'qdtune.commands.on_head', __version__, *arguments])}"


def next_id(name: str, known: Sequence[Job]) -> str:
    """`qdtune-NAME-N`, the next N: two that submit at once ask for the same id, of which the server takes one."""
    pattern = re.compile(rf"qdtune-{re.escape(name)}-(\d+)")
    numbers = [int(found[1]) for job in known if (found := pattern.fullmatch(job.id))]
    return f"qdtune-{name}-{max(numbers, default=0) + 1}"


def failed(log: str, code: int | None, message: str) -> int:
    """Says why a job has failed that never came to work; the exit code, 2 where none is known."""
    why = [line for line in log.splitlines() if line.startswith("error: ")]
    if not why and ("No module named" in log or "not found" in log):
        what = f"the head must have qdtune {__version__} in the `python` of the environment that Ray was started in"
        why = [f"error: {what}: {last_line(log)}"]
    for line in why or [f"error: the job failed: {last_line(message) or 'no reason given'}"]:
        print(one_line(line)[:1_000], file=sys.stderr)
    return code if why and code in (2, 3, 4, 5) else 2


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def found_job(server: Jobs, what: str) -> Job | None:
    """The job of this id, else the one that runs a sweep of this name, else the last that did."""
    known = server.all()
    by_id = [job for job in known if job.id == what]
    by_name = sorted((job for job in known if job.name == what), key=lambda job: job.runs)
    return next(iter([*by_id, *by_name[::-1]]), None)


SWEEP = "sweep.yaml"  # the name of the file that was sent


HERE = f"qdtune {__version__} on the head"  # the first line of a job whose version fits
