"""The jobs of a cluster, through the job server of its head: only HTTP on the port of Ray's dashboard.

Call `cluster.set_environment` before you import this file, because it imports Ray.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray import job_submission
from ray.exceptions import AuthenticationError

from qdtune.messages import one_line
from qdtune.remote.job import ENDED, KEY_PREFIX, Job, make_job, status_text
from qdtune.remote.proxy import find_proxy
from qdtune.sweep.cluster import KNOCK_S, token_place

STOP_S = 60  # the time of a sweep to end in order; then Ray kills it
# Ray's default, SIGTERM and three seconds, is too short for a sweep to write its last results.
STOP_VARIABLES = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
POLL_S = 0.5
HEALTH_S = 5.0  # after this silence of a followed job its head is asked for its health
LOST_S = 120.0  # how long the head may be unreachable
ADDRESS_FORM = "http://HOST:8265, where the dashboard of the cluster's head listens"


for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)


class JobError(ValueError):
    """The job server does not answer, or has no such job."""


class LostError(JobError):
    """The head became unreachable while a job was followed, and stayed so for `LOST_S`."""


class Jobs:
    """The job server at an address.

    Args:
        address: http://HOST:PORT.
        allow_proxy: whether requests may go through a proxy that the environment names.

    Raises:
        JobError: no job server answers there, it refuses the token, or a proxy is not allowed.
    """

    def __init__(self, address: str, allow_proxy: bool = False) -> None:
        self.address, self.allow_proxy = check_address(address), allow_proxy
        proxy = find_proxy(self.address)
        if proxy and not allow_proxy:
            host = urlsplit(self.address).hostname
            what = f"requests to {self.address} go through the proxy {proxy}, which may read the token"
            raise JobError(f"{what} (put {host} into no_proxy, or allow it with --allow-proxy)")
        if not proxy:  # else the server itself may be out of reach
            self._knock()
        for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(variable, None)  # Ray's client would use this address instead
        with self._request_errors():
            self.client = job_submission.JobSubmissionClient(self.address)

    @property
    def options(self) -> str:
        """The options with which another command reaches this server."""
        return f"--address {self.address}{' --allow-proxy' if self.allow_proxy else ''}"

    def _knock(self) -> None:
        url = urlsplit(self.address)
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=KNOCK_S).close()
        except OSError as error:
            raise JobError(f"no Ray job server answers at {self.address}: {error}") from None

    @contextmanager
    def _request_errors(self) -> Iterator[None]:
        """Turns every error of a request in its block into a JobError of one line."""
        try:
            yield
        except AuthenticationError as error:
            refused = error.message.startswith("Authentication failed")  # 403, else 401
            mode = os.environ.get("RAY_AUTH_MODE", "token")
            if mode != "token" and not refused:
                what = f"wants a token, and RAY_AUTH_MODE={one_line(mode)} sends none"
                raise JobError(f"the job server at {self.address} {what}: set RAY_AUTH_MODE=token") from None
            what = "refused the token in" if refused else "wants a token, and there is none in"
            how = "the cluster's own is needed there, or in a file that RAY_AUTH_TOKEN_PATH names"
            raise JobError(f"the job server at {self.address} {what} {token_place()}: {how}") from None
        except (requests.RequestException, aiohttp.ClientError, OSError, KeyError, TypeError, ValueError) as error:
            raise JobError(f"no Ray job server answers at {self.address}: {_error_line(error)}") from None
        except RuntimeError as error:  # Ray's client raises it for an HTTP status
            if "Version check" in str(error):
                raise JobError(f"no Ray job server answers at {self.address}: it knows no version") from None
            if "No available agent" in str(error):
                what = "takes no job, for the agent of its head does not run: most often its port was taken"
                how = "start Ray there again with --dashboard-agent-listen-port and a free one"
                raise JobError(f"the job server at {self.address} {what} ({how})") from None
            raise JobError(f"the job server at {self.address} refused: {_error_line(error)}") from None

    def all(self) -> list[Job]:
        """The submitted sweeps in the order of their start."""
        with self._request_errors():
            found = self.client.list_jobs()
        ours = [make_job(details) for details in found if f"{KEY_PREFIX}name" in (details.metadata or {})]
        return sorted(ours, key=lambda job: (job.started, job.id))

    def get(self, job: str) -> Job:
        """The submitted sweep with this id.

        Raises:
            JobError: it does not exist.
        """
        for known in self.all():
            if known.id == job:
                return known
        raise JobError(f"there is no job {job} at {self.address} (qdtune jobs lists them)")

    def start(
        self, job: str, entrypoint: str, folder: Path | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        """Starts a job under a new id.

        Args:
            job: the id.
            entrypoint: the command line for the shell of the head.
            folder: sent with the job as the current folder of the job and of its workers.
            metadata: its keys for `all`, without the prefix.
        """
        environment: dict[str, Any] = {"env_vars": STOP_VARIABLES}
        if folder is not None:
            environment["working_dir"] = str(folder)
        known = {f"{KEY_PREFIX}{key}": value for key, value in (metadata or {}).items()}
        with self._request_errors():
            self.client.submit_job(
                entrypoint=entrypoint, submission_id=job, runtime_env=environment, metadata=known or None
            )

    def state(self, job: str) -> tuple[str, int | None, str]:
        """Status, exit code and message of any job, also one that is not a sweep."""
        with self._request_errors():
            found = self.client.get_job_info(job)
        return status_text(found.status), found.driver_exit_code, found.message or ""

    def wait(self, job: str, until: Callable[[], bool] = lambda: False, seconds: float = float("inf")) -> bool:
        """Waits for the end of a job: True if it has ended, False if `until` is true or the time is over first."""
        deadline = time.monotonic() + seconds
        while (ended := self.state(job)[0] in ENDED) is False and not until() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return ended

    def log(self, job: str) -> str:
        """The output of a job so far."""
        with self._request_errors():
            text: str = self.client.get_job_logs(job)
        return text

    def follow(self, job: str, show: Callable[[str], None], say: Callable[[str], None]) -> None:
        """Passes the output of a job to `show` until it ends.

        Args:
            job: its id.
            show: takes the text as it arrives.
            say: takes one line if the connection is lost, and one if it is back.

        Raises:
            LostError: the head was unreachable for `LOST_S`.
        """
        seen, lost_at = 0, math.inf

        async def tail() -> None:
            nonlocal seen, lost_at
            skip = seen  # a new connection sends all output again
            texts = aiter(self.client.tail_job_logs(job))
            while (text := await self._next(texts)) is not None:
                if lost_at < math.inf:
                    say("the connection is back")
                lost_at = math.inf
                new, skip = text[skip:], max(0, skip - len(text))
                seen += len(new)
                show(new)

        while True:
            try:
                with self._request_errors():
                    asyncio.run(tail())
                if self.state(job)[0] in ENDED:
                    return
            except JobError:  # for example a laptop that slept
                if lost_at == math.inf:
                    lost_at = time.monotonic()
                    say(f"the connection to {self.address} is lost: trying again for {LOST_S / 60:g} min")
                if time.monotonic() - lost_at > LOST_S:
                    raise LostError(f"the head at {self.address} is gone and has not come back with {job}") from None
            time.sleep(POLL_S)

    async def _next(self, texts: AsyncIterator[str]) -> str | None:
        """The next text, None at the end. Asks the head if none arrives, because a connection can break silently."""

        async def next_one() -> str | None:
            return await anext(texts, None)

        task = asyncio.create_task(next_one())
        while not (await asyncio.wait([task], timeout=HEALTH_S))[0]:
            health = await asyncio.to_thread(requests.get, f"{self.address}/api/gcs_healthz", timeout=KNOCK_S)
            health.raise_for_status()
        return task.result()

    def stop(self, job: str) -> None:
        """Asks a job to end in order."""
        with self._request_errors():
            self.client.stop_job(job)

    def forget(self, job: str) -> None:
        """Removes a job that has ended from the list of the server."""
        with self._request_errors():
            self.client.delete_job(job)


def check_address(address: str) -> str:
    """The address of a job server, without a path.

    Raises:
        JobError: it is no such address, or it holds a password.
    """
    url = urlsplit(address)
    if url.username or url.password or "@" in url.netloc:
        raise JobError("--address must hold no password: a token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/") or url.query:
        raise JobError(f"--address must be {ADDRESS_FORM}, got {address}")
    try:
        url.port  # noqa: B018 - it may raise
    except ValueError as error:
        raise JobError(f"--address must be {ADDRESS_FORM}, got {address}: {error}") from None
    return f"{url.scheme}://{url.netloc}"


def _error_line(error: Exception) -> str:
    """The message of an error, without the traceback that Ray sends with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), None)
    return (last or (lines or [type(error).__name__])[0])[:300]
