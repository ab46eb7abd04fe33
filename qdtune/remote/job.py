"""One submitted sweep in the list of a job server."""

from __future__ import annotations

from typing import Any, NamedTuple

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
KEY_PREFIX = "qdtune."  # of our keys in the metadata of a job


class Job(NamedTuple):
    """One submitted sweep in the list of the job server.

    Attributes:
        id: its submission id.
        name: of the sweep.
        runs_dir: the parent of its run folder; "" is the default of the head.
        sweep: a hash of the sweep file and of all files sent with it.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started: seconds since 1970; 0 if it has not started.
        code: exit code; None while it runs and if it was stopped.
        message: the message from Ray.
    """

    id: str
    name: str
    runs_dir: str
    sweep: str
    status: str
    started: float
    code: int | None
    message: str

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.status not in ENDED


def make_job(details: Any) -> Job:
    """One entry in the list of the job server, which has our keys in its metadata."""
    known = {key: details.metadata.get(f"{KEY_PREFIX}{key}", "") for key in ("name", "runs_dir", "sweep")}
    return Job(
        id=details.submission_id,
        **known,
        status=status_text(details.status),
        started=(details.start_time or 0) / 1000,
        code=details.driver_exit_code,
        message=details.message or "",
    )


def status_text(status: Any) -> str:
    """A status as a word: Ray's client gives an enum or a text."""
    return str(getattr(status, "value", status))
