"""Sweeps on a cluster elsewhere: what is sent, what is asked and in which order, and how each mistake is told.

Ray's client is replaced at the boundary; the last test has a real head, in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray import job_submission
from ray.exceptions import AuthenticationError

from qdtune import __main__, __version__
from qdtune.commands import on_head
from qdtune.remote import job_server, protocol
from qdtune.remote.archive import archive_lines
from qdtune.spec.sweep_file import load, loads
from qdtune.store.open_folder import open_folder
from tests.fake import launch as faked
from tests.sweep.test_kills import rows_of

SWEEP = """\
version: 1
name: tiny
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 2, 3]}}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 2}}
"""
AT = ["--address", "http://head:8265"]
FETCH = ["these files are on the head; to bring them here:", "  qdtune fetch tiny --address http://head:8265"]
TOKEN = "CANARY-0123456789abcdef"


class Server:
    """Ray's client and the job server behind it, as far as they are used: jobs by id, and what was asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, SimpleNamespace] = {}
        self.logs: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.sent: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.fails: Exception | None = None
        self.script = (
            "SUCCEEDED",
            0,
            [f"Running entrypoint for job x\n{protocol.HEAD_LINE}\nall", " done\x1b]0;x\x07\n"],
        )

    def has(self, name: str, n: int, status: str, sweep: str = "", runs_dir: str = "") -> str:
        job = f"qdtune-{name}-{n}"
        about = {"qdtune.name": name, "qdtune.sweep": sweep, "qdtune.runs_dir": runs_dir}
        known = {"status": status, "metadata": about, "driver_exit_code": 0 if status == "SUCCEEDED" else None}
        self.jobs[job] = SimpleNamespace(submission_id=job, start_time=n * 1000, message="", **known)
        return job

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fails:
            raise self.fails

    def list_jobs(self) -> list[SimpleNamespace]:
        self._ask("list")
        driver = SimpleNamespace(submission_id=None, metadata=None)
        return [driver, *self.jobs.values()]

    def submit_job(self, *, submission_id: str, runtime_env: dict[str, Any], **sent: Any) -> str:
        self._ask(f"submit {submission_id}")
        self.sent = {"runtime_env": runtime_env, **sent}
        root = Path(runtime_env.get("working_dir", "/nowhere"))
        self.files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        status, code, self.logs[submission_id] = self.script
        known = {"status": status, "driver_exit_code": code, "message": "Job failed\nlast words", "start_time": 9000}
        metadata = sent["metadata"] or {}
        self.jobs[submission_id] = SimpleNamespace(submission_id=submission_id, metadata=metadata, **known)
        return submission_id

    def get_job_info(self, job: str) -> SimpleNamespace:
        self._ask(f"info {job}")
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        return "".join(self.logs[job])

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self._ask(f"tail {job}")
        for text in self.logs[job]:
            yield text

    def stop_job(self, job: str) -> bool:
        self._ask(f"stop {job}")
        self.jobs[job].status = "STOPPED"
        return True

    def delete_job(self, job: str) -> bool:
        self._ask(f"delete {job}")
        del self.jobs[job]
        return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(job_submission, "JobSubmissionClient", lambda address: server)
    monkeypatch.setattr(job_server.Jobs, "_knock", lambda self: None)
    monkeypatch.setattr("qdtune.sweep.cluster.set_environment", lambda address: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job_server, "POLL_S", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    (tmp_path / "private.txt").write_text("stays here")
    umask = os.umask(0o022)
    yield server
    os.umask(umask)
    assert TOKEN not in repr((server.asked, server.sent, server.files))


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = __main__.main([*argv, *([] if "--address" in argv else AT)])
    return code, *capsys.readouterr()


def test_only_the_sweep_file_is_sent_with_every_key_in_it(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "seeds=[3]", "--runs-dir", "s3://bucket/my runs", "--data-dir", "d'; rm -rf /", "--fresh"]
    code, out, err = run(capsys, "submit", "tiny.yaml", *options)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "qdtune-tiny-1 succeeded at http://head:8265",
        "to bring its results here:",
        "  qdtune fetch qdtune-tiny-1 --address http://head:8265",
    ]
    assert list(server.files) == ["sweep.yaml"]
    assert loads(server.files["sweep.yaml"], "x") == load("tiny.yaml", ["seeds=[3]"])
    line = shlex.split(server.sent["entrypoint"])
    assert line[:6] == ["exec", "python", "-m", "qdtune.commands.on_head", __version__, "launch"]
    assert line[6:] == ["--runs-dir=s3://bucket/my runs", "--data-dir=d'; rm -rf /", "--fresh"]
    assert server.sent["runtime_env"]["env_vars"] == {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    assert server.sent["metadata"].keys() == {"qdtune.name", "qdtune.runs_dir", "qdtune.sweep"}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["submit"], "no sweep given (usage: qdtune submit SWEEP"),
        (["submit", "tiny.yaml", "--set", "seeds=[-1]"], "--set: seeds[0]: -1 is not allowed (a whole"),
        (["submit", "tiny.yaml", "--set", "constraints=[params < 1]"], "tiny.yaml: nothing is left to run: 0 of 6"),
        (["submit", "tiny.yaml", "--runs-dir", "s3://key:word@b/x"], "s3://b/x must be nothing but bucket"),
        (["submit", "tiny.yaml", "--adress", "x"], "unknown option '--adress'; did you mean '--address'?"),
        (["submit", "tinyy.yaml"], "no such file: tinyy.yaml (did you mean tiny.yaml?)"),
        (["stop"], "no job given (usage: qdtune stop ID|NAME --address http://HOST:8265)"),
        (["fetch"], "no job given (usage: qdtune fetch ID|NAME [--out DIR]"),
    ],
)
def test_mistake_is_one_line_and_nobody_is_asked(
    server: Server, capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out, server.asked) == (2, "", [])
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("proxy", [[], ["--allow-proxy"]])
def test_commands_that_go_on_can_be_pasted(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, proxy: list[str]
) -> None:
    server.script = ("RUNNING", None, server.script[2])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    code, out, _ = run(capsys, "submit", "tiny.yaml", *proxy)
    assert code == 0
    options = " ".join([*AT, *proxy])
    assert out.splitlines() == [
        "qdtune-tiny-1 running at http://head:8265",
        "to see its output: the same command with --follow",
        "to stop it:",
        f"  qdtune stop qdtune-tiny-1 {options}",
        "to bring its results here:",
        f"  qdtune fetch qdtune-tiny-1 {options}",
    ]


def test_followed_lines_are_wrapped_on_a_terminal_and_rows_of_tables_are_not(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "1,335  " * 20 + "5"
    server.script = ("SUCCEEDED", 0, [f"{protocol.HEAD_LINE}\n{row}\n{'many words ' * 20}\n"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "submit", "tiny.yaml", "--follow")
    lines = out.splitlines()
    assert (code, lines[2]) == (0, row)
    assert " ".join(line.strip() for line in lines[3:6]) == ("many words " * 20).strip()
    assert all(len(line) <= 80 for line in lines if line != row)


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", -9, 4),
        ("FAILED", None, 4),
        ("STOPPED", None, 130),
    ],
)
def test_followed_job_gives_its_lines_and_its_exit_code(
    server: Server, capsys: pytest.CaptureFixture[str], status: str, code: int | None, ends: int
) -> None:
    server.script = (status, code, server.script[2])
    found, out, err = run(capsys, "submit", "tiny.yaml", "--follow")
    assert (found, err) == (ends, "")
    lines = [
        "following qdtune-tiny-1 (Ctrl-C ends the following, not the job); its files are on the head",
        "all done ]0;x ",
    ]
    stopped = ["qdtune-tiny-1 was stopped; the same command goes on from here"]
    assert out.splitlines() == lines + (stopped if status == "STOPPED" else []) + ([] if ends == 2 else FETCH)


LOST_LINE = "the connection to http://head:8265 is lost: trying again for 2 min"


@pytest.mark.parametrize("hangs", [False, True])
def test_connection_that_breaks_is_taken_up_where_it_was(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    texts, breaks = server.script[2], iter([0, 0, 1, 2, 3, 99])
    monkeypatch.setattr(job_server, "HEALTH_S", 0.01)
    monkeypatch.setattr(requests, "get", lambda *a, **k: (_ for _ in ()).throw(requests.ConnectionError("gone")))

    async def tail(job: str) -> AsyncIterator[str]:
        last = next(breaks)
        for n, text in enumerate([*texts, "more\n"]):
            if n == last and hangs:  # as where the other side was cut from the power
                await asyncio.Event().wait()
            elif n == last:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text

    server.tail_job_logs = tail  # type: ignore[method-assign]
    code, out, err = run(capsys, "submit", "tiny.yaml", "--follow")
    assert (code, out.splitlines()[1:3]) == (0, ["all done ]0;x ", "more"])
    assert err.splitlines() == [LOST_LINE, "the connection is back"] * 3


def test_head_that_is_alive_and_silent_is_waited_for(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(3))
    again = threading.Event()
    monkeypatch.setattr(job_server, "HEALTH_S", 0.01)
    alive = SimpleNamespace(raise_for_status=lambda: None)
    monkeypatch.setattr(requests, "get", lambda *a, **k: alive if next(asked) < 2 else again.set() or alive)

    async def tail(job: str) -> AsyncIterator[str]:
        yield f"{protocol.HEAD_LINE}\n"
        while not again.is_set():
            await asyncio.sleep(0)
        yield "done\n"

    server.tail_job_logs = tail  # type: ignore[method-assign]
    code, out, err = run(capsys, "submit", "tiny.yaml", "--follow")
    assert (code, out.splitlines()[1], err) == (0, "done", "")


def test_head_that_stays_away_ends_the_following(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_server, "LOST_S", 0.06)
    gone = requests.ConnectionError("Cannot connect to host head:8265 ssl:default [Connect call failed]")
    monkeypatch.setattr(server, "tail_job_logs", lambda job: (_ for _ in ()).throw(gone))
    code, _, err = run(capsys, "submit", "tiny.yaml", "--follow")
    assert (code, err.splitlines()) == (
        4,
        [
            LOST_LINE.replace("2 min", "0.001 min"),
            "error: the head at http://head:8265 is gone and has not come back with qdtune-tiny-1; what was finished "
            "is kept there, the same command goes on from it",
        ],
    )


def test_ctrl_c_ends_the_following_and_not_the_job(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tail(job: str) -> AsyncIterator[str]:
        yield f"{protocol.HEAD_LINE}\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "tail_job_logs", tail)
    code, _, err = run(capsys, "submit", "tiny.yaml", "--follow")
    assert code == 130
    assert err == "\nqdtune-tiny-1 goes on; to stop it:\n  qdtune stop qdtune-tiny-1 --address http://head:8265\n"
    assert not any(asked.startswith("stop") for asked in server.asked)


def test_sweep_that_runs_is_not_started_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "submit", "tiny.yaml")[0] == 0
    digest = server.sent["metadata"]["qdtune.sweep"]
    server.jobs.clear()
    job = server.has("tiny", 7, "RUNNING", digest)
    server.has("other", 8, "RUNNING", digest)
    server.asked.clear()
    already = f"error: tiny runs already, as {job}"
    assert run(capsys, "submit", "tiny.yaml") == (5, "", f"{already} (--follow follows it)\n")
    changed = f"{already}, and not as this command would have it: stop it first\n"
    assert run(capsys, "submit", "tiny.yaml", "--follow", "--fresh") == (5, "", changed)
    assert run(capsys, "submit", "tiny.yaml", "--follow", "--set", "seeds=[5]") == (5, "", changed)
    assert server.asked == ["list"] * 3
    server.jobs[job].status = "SUCCEEDED"  # as it is when the next command looks: a new job, the next number
    assert run(capsys, "submit", "tiny.yaml")[0] == 0
    assert server.asked[3:5] == ["list", "submit qdtune-tiny-8"]


def test_sweep_that_runs_is_followed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "submit", "tiny.yaml")[0] == 0
    digest = server.sent["metadata"]["qdtune.sweep"]
    job = server.has("tiny", 7, "PENDING", digest)

    async def tail(job: str) -> AsyncIterator[str]:
        yield f"{protocol.HEAD_LINE}\nto its end\n"
        server.jobs[job].status, server.jobs[job].driver_exit_code = "SUCCEEDED", 0

    server.tail_job_logs = tail  # type: ignore[method-assign]
    code, out, _ = run(capsys, "submit", "tiny.yaml", "--follow")
    assert (code, out.splitlines()[0], out.splitlines()[2:]) == (
        0,
        f"tiny runs already, as {job}",
        ["to its end", *FETCH],
    )


def test_same_name_in_another_place_is_another_sweep(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.has("tiny", 1, "RUNNING", runs_dir="elsewhere")
    assert run(capsys, "submit", "tiny.yaml")[0] == 0
    assert "submit qdtune-tiny-2" in server.asked


def test_a_tilde_is_the_home_folder_of_the_head(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.has("tiny", 1, "RUNNING", runs_dir="~/results")
    assert run(capsys, "submit", "tiny.yaml", "--runs-dir=~/results")[0] == 5


@pytest.mark.parametrize(
    ("log", "code", "ends", "said"),
    [
        ([], 2, 2, "the job failed: last words"),
        (["/usr/bin/python: No module named qdtune\n"], 1, 2, "the head must have qdtune "),
        (["sh: 1: exec: python: not found\n"], 127, 2, "the head must have qdtune "),
        (["error: the head must have the version of qdtune that submits\n"], 2, 2, "the head must have the version"),
    ],
)
@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_job_that_never_comes_to_work_is_told_in_one_line(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    follow: list[str],
    log: list[str],
    code: int,
    ends: int,
    said: str,
) -> None:
    server.script = ("FAILED", code, ["Running entrypoint for job x: exec python\n", *log])
    found, _, err = run(capsys, "submit", "tiny.yaml", *follow)
    assert (found, err.count("\n")) == (ends, 1)
    assert err.startswith(f"error: {said}")


ASKED = [["jobs"], ["submit", "tiny.yaml"], ["stop", "x"], ["fetch", "x"]]


@pytest.mark.parametrize("argv", ASKED, ids=lambda argv: argv[0])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            AuthenticationError("Authentication failed: x\nadvice"),
            "the job server at http://head:8265 refused the token in RAY_AUTH_TOKEN: the cluster's",
        ),
        (requests.ConnectionError("reset"), "no Ray job server answers at http://head:8265: reset"),
        (KeyError("ray_version"), "no Ray job server answers at http://head:8265: 'ray_version'"),
        (
            RuntimeError("Request failed with status code 500: No available agent to submit job, please try again."),
            "the job server at http://head:8265 takes no job, for the agent of its head does not run",
        ),
        (RuntimeError("Version check returned 404."), "no Ray job server answers at http://head:8265: it knows no"),
        (
            RuntimeError("Request failed with status code 500: Traceback\n  File x\nValueError: taken.\n"),
            "the job server at http://head:8265 refused: ValueError: taken.",
        ),
    ],
)
def test_server_that_refuses_is_one_line(
    server: Server, capsys: pytest.CaptureFixture[str], argv: list[str], error: Exception, line: str
) -> None:
    server.fails = error
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("status", "said"), [(401, "wants a token, and there is none in"), (403, "refused the token in")]
)
def test_token_that_is_missing_is_told_from_one_that_is_refused_and_none_is_shown(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
    said: str,
) -> None:
    """As Ray's own client words what a server answers."""
    from ray._private.authentication.http_token_authentication import format_authentication_http_error

    server.fails = AuthenticationError(format_authentication_http_error(status, f"token {TOKEN}") or "")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", "/home/me")
    for given, place in ((str(tmp_path / "token"), str(tmp_path / "token")), ("", "/home/me/.ray/auth_token")):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", given)
        code, out, err = run(capsys, "jobs")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: the job server at http://head:8265 {said} {place}: the cluster's own is")
        assert TOKEN not in err


@pytest.mark.parametrize("mode", ["disabled", "x"])
def test_a_mode_that_sends_no_token_is_named(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from ray._private.authentication.http_token_authentication import format_authentication_http_error

    server.fails = AuthenticationError(format_authentication_http_error(401, "no token") or "")
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    what = f"wants a token, and RAY_AUTH_MODE={mode} sends none: set RAY_AUTH_MODE=token"
    assert run(capsys, "jobs") == (2, "", f"error: the job server at http://head:8265 {what}\n")


@pytest.mark.parametrize(
    "address", ["head:8265", "head", "ftp://head:1", "http://", "http://h:x", "http://h:8265/api"]
)
def test_address_of_another_kind_is_refused(server: Server, capsys: pytest.CaptureFixture[str], address: str) -> None:
    code, out, err = run(capsys, "jobs", "--address", address)
    assert (code, out, server.asked) == (2, "", [])
    assert err.startswith(
        "error: --address must be http://HOST:8265, where the dashboard of the cluster's head listens"
    )


def test_address_with_a_password_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(job_server.JobError, match=r"^--address must hold no password") as raised:
        job_server.check_address("http://me:secret@head:8265")
    assert "secret" not in str(raised.value)


def test_nothing_that_listens_is_told_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(
        job_server.JobError, match=rf"^no Ray job server answers at http://127.0.0.1:{port}: .*refused"
    ):
        job_server.Jobs(f"http://127.0.0.1:{port}")


def test_jobs_are_listed_in_their_order(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "jobs") == (0, "no sweep was submitted to http://head:8265\n", "")
    for n, status in (
        (10, "RUNNING"),
        (11, "RUNNING"),
        (12, "RUNNING"),
        (13, "PENDING"),
        (1, "SUCCEEDED"),
        (2, "FAILED"),
        (3, "STOPPED"),
        (4, "STOPPED"),
    ):
        server.has("tiny", n, status)
    doing = "3/6 done, 2 running, 1 pruned, 14/18 epochs, about 3 min left; front of 2; d1 w1 qat 1/2, about 9 s left"
    server.logs["qdtune-tiny-10"] = [f"0/6 done, 2 running, 0/18 epochs\n{doing}\n"]
    server.logs["qdtune-tiny-11"] = ["x 9/9 done\n0/6 done, 2 running, 0/18 epochs; d1 w1 starting\n"]
    server.logs["qdtune-tiny-12"] = [f"{protocol.HEAD_LINE}\n"]
    server.logs["qdtune-tiny-3"] = ["0/6 done\n\nstopped by SIGINT: 4 of 6 trials left to do; the same command\n"]
    server.logs["qdtune-tiny-4"] = ["stopped before it began\n"]
    server.jobs["qdtune-tiny-2"].driver_exit_code = 5
    server.jobs["qdtune-tiny-2"].message = "Job failed\nerror: held\x1b by\n"
    assert run(capsys, "jobs")[1].splitlines() == [
        "job             status     started (UTC)        progress or end",
        "qdtune-tiny-1   SUCCEEDED  1970-01-01 00:00:01  exit code 0",
        "qdtune-tiny-2   FAILED     1970-01-01 00:00:02  exit code 5: error: held\\x1b by",
        "qdtune-tiny-3   STOPPED    1970-01-01 00:00:03  2 of 6 done",
        "qdtune-tiny-4   STOPPED    1970-01-01 00:00:04",
        "qdtune-tiny-10  RUNNING    1970-01-01 00:00:10  3 of 6 done, about 3 min left",
        "qdtune-tiny-11  RUNNING    1970-01-01 00:00:11  0 of 6 done",
        "qdtune-tiny-12  RUNNING    1970-01-01 00:00:12  starting",
        "qdtune-tiny-13  PENDING    1970-01-01 00:00:13",
    ]


def test_stop_takes_an_id_or_a_name_and_says_what_has_ended(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.has("tiny", 1, "RUNNING")
    server.has("tiny", 2, "SUCCEEDED")
    code, out, _ = run(capsys, "stop", "tiny")
    assert code == 0
    assert out.splitlines() == [
        "stopping qdtune-tiny-1: it writes its last results first",
        "qdtune-tiny-1 has ended: STOPPED; the same submit goes on from here",
    ]
    assert run(capsys, "stop", "qdtune-tiny-2") == (0, "qdtune-tiny-2 has ended: SUCCEEDED\n", "")
    for code, again in ((2, ""), (5, ""), (3, "; the same submit goes on from here")):
        failed = server.jobs[server.has("tiny", 3, "FAILED")]
        failed.driver_exit_code = code
        assert run(capsys, "stop", "tiny") == (0, f"qdtune-tiny-3 has ended: FAILED{again}\n", "")
    none = "error: there is no job qdtune-tiny-9 at http://head:8265 (qdtune jobs lists them)\n"
    assert run(capsys, "stop", "qdtune-tiny-9") == (2, "", none)
    assert [asked for asked in server.asked if asked.startswith("stop")] == ["stop qdtune-tiny-1"]


@pytest.mark.parametrize(("columns", "room"), [("80", 80), ("", 120), ("20", 81)])
def test_how_a_job_failed_is_wrapped_and_names_the_sweep_file_without_its_temporary_folder(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, room: int
) -> None:
    server.jobs[server.has("tiny", 1, "FAILED")].driver_exit_code = 2
    sent = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0a1b2c3d/sweep.yaml"
    server.jobs["qdtune-tiny-1"].message = f"Job failed\nerror: {sent}:5: seeds: {'why ' * 40}"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(columns))
    monkeypatch.setenv("COLUMNS", columns or "80")
    head, line, *more = run(capsys, "jobs")[1].splitlines()
    start = head.index("progress or end")
    assert max(len(one) for one in (line, *more)) <= room
    assert more
    assert all(one[:start].isspace() and one[start] != " " for one in more)
    whole = " ".join([line[start:], *(one[start:] for one in more)])
    assert whole == f"exit code 2: error: sweep.yaml:5: seeds: {'why ' * 40}".rstrip()


@pytest.mark.parametrize(
    ("variables", "given", "asked"),
    [
        ({"RAY_API_SERVER_ADDRESS": "http://one:8265", "RAY_ADDRESS": "http://two:8265"}, [], "http://one:8265"),
        ({"RAY_ADDRESS": "http://two:8265"}, [], "http://two:8265"),
        ({"RAY_API_SERVER_ADDRESS": "http://one:8265", "RAY_ADDRESS": "http://two:8265"}, AT, AT[1]),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, AT, AT[1]),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, [], None),
    ],
)
def test_address_is_the_one_given_or_else_rays_own_variable(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    given: list[str],
    asked: str | None,
) -> None:
    seen: list[tuple[str, list[str]]] = []

    def client(address: str) -> Server:
        seen.append((address, [name for name in variables if name in os.environ]))  # which Ray's client would prefer
        return server

    monkeypatch.setattr(job_submission, "JobSubmissionClient", client)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = __main__.main(["jobs", *given])
    out, err = capsys.readouterr()
    assert seen == ([(asked, [])] if asked else [])
    none = "error: no --address given, and none in RAY_API_SERVER_ADDRESS (usage: qdtune jobs"
    assert (code, err.startswith(none)) == ((0, False) if asked else (2, True))
    assert out == (f"no sweep was submitted to {asked}\n" if asked else "")


# --- Code of the user's own


def own(folder: Path, factory: str) -> None:
    text = SWEEP.replace("{name: mlp, hidden: [8]}", f"{{factory: '{factory}', hidden: [8]}}")
    (folder / "own.yaml").write_text(text)


def test_own_module_is_sent_along_where_the_command_says_so(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(tmp_path, "mine.nets:net")
    (tmp_path / "mine").mkdir()
    (tmp_path / "__init__.py").touch()
    for name in ("__init__.py", "nets.py", "other.py"):
        (tmp_path / "mine" / name).write_text("raise SystemExit('imported here')")
    assert run(capsys, "submit", "own.yaml")[::2] == (
        2,
        "error: own.yaml: model.factory: mine.nets:net is code of your own: it is imported only where the command "
        "says --allow-plugin mine.nets\n",
    )
    assert run(capsys, "submit", "own.yaml", "--allow-plugin", "mine.nets")[0] == 0
    assert sorted(server.files) == ["mine/__init__.py", "mine/nets.py", "sweep.yaml"]
    assert shlex.split(server.sent["entrypoint"])[-1] == "--allow-plugin=mine.nets"
    assert not any(name.startswith("mine") for name in sys.modules)


def test_own_module_that_cannot_be_sent_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(tmp_path, "json:loads")
    code, _, err = run(capsys, "submit", "own.yaml", "--allow-plugin", "json")
    assert (code, server.asked) == (2, [])
    assert err.startswith(
        "error: own.yaml: model.factory: json:loads must be in a file json.py beside the sweep file"
    )


# --- Results


def fetched(server: Server, name: str = "tiny", n: int = 1) -> Path:
    """A finished sweep in the head's run folder, whose archive the server gives."""
    folder = Path("head") / name
    faked(folder, loads(SWEEP.replace("tiny", name).encode(), "tiny.yaml"))
    server.has(name, n, "SUCCEEDED")
    server.script = (
        "SUCCEEDED",
        0,
        [protocol.HEAD_LINE + "\n", *(f"{line}\n" for line in archive_lines(open_folder(folder)))],
    )
    return folder


def test_fetch_brings_the_folder_sets_aside_what_was_there_and_leaves_no_job(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetched(server)
    code, out, err = run(capsys, "fetch", "tiny", "--out", "here")
    assert (code, err) == (0, "")
    assert re.search(
        r"here/tiny: 6 trials, 12 rows, 24 epochs: all whole\nreport: here/tiny/report.html\n"
        r"figures: front.* beside it\nto read it:\n  qdtune report here/tiny\n$",
        out,
    )
    assert {"report.html", "front.svg", "front.png"} <= set(os.listdir("here/tiny"))
    assert rows_of("here/tiny") == rows_of(folder)
    assert oct(Path("here/tiny").stat().st_mode)[-3:] == "700"
    assert list(server.jobs) == ["qdtune-tiny-1"]
    assert shlex.split(server.sent["entrypoint"])[4:] == [__version__, "pack", "tiny"]
    assert run(capsys, "fetch", "qdtune-tiny-1", "--out", "here")[0] == 0
    assert sorted(os.listdir("here")) == ["tiny", "tiny.1"]


def test_fetch_fits_a_terminal(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(server)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    code, out, _ = run(capsys, "fetch", "tiny", "--out", "here")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 50
    assert out.endswith("to read it:\n  qdtune report here/tiny\n")


def test_fetch_waits_for_nobody_and_touches_nothing_of_others(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched(server)
    server.has("tiny", 2, "RUNNING")
    said = "error: qdtune-tiny-2 still runs: wait for its end, or stop it first\n"
    assert run(capsys, "fetch", "tiny", "--out", "here") == (5, "", said)
    del server.jobs["qdtune-tiny-2"]
    assert run(capsys, "fetch", "../tiny", "--out", "here")[0] == 2
    Path("here/tiny").mkdir(parents=True)
    Path("here/tiny/mine.txt").touch()
    code, _, err = run(capsys, "fetch", "tiny", "--out", "here")
    assert (code, err) == (
        2,
        "error: here/tiny must be a run folder or not be there, got something else (choose --out)\n",
    )
    assert not any(asked.startswith("submit") for asked in server.asked)


def test_fetch_judges_its_place_before_it_asks_for_anything(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(server)
    Path("file").write_text("mine")
    Path("runs").mkdir()
    Path("runs/tiny").write_text("mine")
    Path("nowhere").symlink_to("gone")
    for out in ("file", "file/deep/er", "nowhere"):
        code, _, err = run(capsys, "fetch", "tiny", "--out", out)
        assert (code, err.count("\n"), server.asked) == (2, 1, [])
        assert err.startswith(f"error: --out must be a folder, or one that can be made, got {out}: ")
    with monkeypatch.context() as refusing:
        refusing.setattr(os, "access", lambda path, mode: path != Path.cwd())
        code, _, err = run(capsys, "fetch", "tiny", "--out", "new/folder")
        assert (code, server.asked) == (2, [])
        assert err == f"error: --out must be a place to write to, got new/folder: {Path.cwd()} is not\n"
    code, _, err = run(capsys, "fetch", "tiny")
    assert (code, err.split(",")[0]) == (2, "error: runs/tiny must be a run folder or not be there")
    assert not any(asked.startswith("submit") for asked in server.asked)
    assert [Path(name).read_text() for name in ("file", "runs/tiny")] == ["mine", "mine"]
    assert not Path("new").exists()


def test_fetch_takes_no_other_sweep_and_nothing_cut_off(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetched(server, "other", 2)
    server.has("tiny", 1, "SUCCEEDED")
    code, _, err = run(capsys, "fetch", "tiny", "--out", "here")
    assert (code, err) == (4, "error: the archive must be of tiny, got one of other\n")
    server.script = ("SUCCEEDED", 0, server.script[2][:-1])
    code, _, err = run(capsys, "fetch", "tiny", "--out", "here")
    assert (code, err.count("\n")) == (4, 1)
    assert "cut off" in err
    assert os.listdir("here") == []


def test_fetch_tells_what_was_damaged_on_the_head(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fetched(server)
    victim = sorted((folder / "trials").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-3])
    server.script = ("SUCCEEDED", 0, [f"{line}\n" for line in archive_lines(open_folder(folder))])
    code, out, _ = run(capsys, "fetch", "tiny", "--out", "here")
    assert code == 3
    assert re.search(rf"here/tiny/trials/{victim.name}: .*: set aside, runs again\n", out)


def test_fetch_of_a_sweep_whose_job_is_forgotten_looks_for_its_folder(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = ("FAILED", 2, [f"{protocol.HEAD_LINE}\n", "error: there is no run folder x/tiny on the head\n"])
    code, _, err = run(capsys, "fetch", "tiny", "--runs-dir", "x")
    assert (code, err) == (2, "error: there is no run folder x/tiny on the head\n")
    assert shlex.split(server.sent["entrypoint"])[5:] == ["pack", "tiny", "--runs-dir=x"]


# --- On the head


def test_head_of_another_version_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_head.main(["0.0.1", "launch"]) == 2
    said = capsys.readouterr()
    wanted = f"error: the head must have the version of qdtune that submits, 0.0.1, got {__version__} (pip install "
    assert (said.out, said.err.startswith(wanted)) == ("", True)


def test_head_launches_what_was_sent_from_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("qdtune.commands.launch.main", lambda argv: seen.append((argv, os.getcwd())) or 3)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QDTUNE_RUNS", "/data/runs")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert on_head.main([__version__, "launch", "--runs-dir=x", "--fresh"]) == 3
    line = [str(tmp_path / "sweep.yaml"), "--runs-dir", "/data/runs", "--runs-dir=x", "--fresh"]
    assert seen == [(line, str(tmp_path / "home"))]
    assert capsys.readouterr().out == f"{protocol.HEAD_LINE}\n"


def test_head_packs_no_folder_that_is_none_or_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert on_head.main([__version__, "pack", "tiny"]) == 2
    assert capsys.readouterr().err == "error: there is no run folder runs/tiny on the head\n"
    assert not (tmp_path / "runs").exists()
    faked(tmp_path / "runs" / "tiny", loads(SWEEP.encode(), "tiny.yaml"))
    from qdtune.store.store import Store

    with Store(tmp_path / "runs" / "tiny").lock():
        assert on_head.main([__version__, "pack", "tiny"]) == 5
    assert "one launch may use runs/tiny at a time" in capsys.readouterr().err
