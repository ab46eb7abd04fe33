"""What would end Ray's start without a word, or never, is one line and exit code 2 before anything is made."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from qdtune.messages import SpecError
from qdtune.sweep import cluster, ray_start
from qdtune.sweep.cluster import NoClusterError, knock
from qdtune.sweep.ray_start import check_start, check_token, start_errors
from tests.test_machine import is_alive

SWEEP = """\
version: 1
name: tiny
parameters: {weight_bits: {values: [1, 4]}}
seeds: [0]
data: {dataset: synthetic, val_size: 128}
model: {hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 1}}
"""


def launched(folder: Path, *before: str, **environment: str | None) -> tuple[int, str]:
    """The exit code of a launch, and its standard error; it must make nothing."""
    (folder / "tiny.yaml").write_text(SWEEP)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
    line = [*before, sys.executable, "-m", "qdtune", "launch", "tiny.yaml"]
    env = {k: v for k, v in kept.items() if v is not None}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert not (folder / "runs").exists()
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("nothere", "RAY_TMPDIR must be an absolute path, got nothere (unset it for /tmp)"),
        ("~", "RAY_TMPDIR must be an absolute path, got ~ (unset it for /tmp)"),
        ("", "RAY_TMPDIR must be an absolute path, got an empty one (unset it for /tmp)"),
        ("{folder}/nothere", "RAY_TMPDIR must be a folder, got {folder}/nothere: no such folder (unset it for /tmp)"),
        ("{folder}/file", "RAY_TMPDIR must be a folder, got {folder}/file: a file (unset it for /tmp)"),
        (
            "/tmp/" + "x" * 83,
            "RAY_TMPDIR must have at most 25 bytes, because Ray's sockets lie in it, got 88: /tmp/xxx",
        ),
    ],
)
def test_folder_in_which_ray_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, text: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os.path, "isdir", lambda path: "xxx" in str(path))
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setenv("RAY_TMPDIR", place.format(folder=tmp_path))
    with pytest.raises(SpecError) as refused:
        check_start(None)
    assert str(refused.value).startswith(f"error: {text.format(folder=tmp_path)}")
    check_start("10.0.0.1:6379")  # joins a cluster: nothing is put there


def test_temporary_folder_in_which_the_dashboard_finds_no_room_for_a_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for size, fits in ((75, True), (76, False), (88, False)):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * (size - 5))
        if fits:
            check_start(None)
        else:
            with pytest.raises(SpecError, match=rf"TMPDIR must have at most 75 bytes, .* got {size}: /"):
                check_start(None)


def test_folder_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        SpecError, match=r"the folder /tmp must have 8 MB of room for Ray's logs, got 1\.0 MB in /tmp"
    ):
        check_start(None)


@pytest.mark.parametrize("limit", [64, 255])
def test_too_few_open_files_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")  # as the kernel tells all but root

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(SpecError, match=rf"256 open files in a process, and the limit is {limit} \(ulimit -n 256\)"):
        check_start("10.0.0.1:6379")


def test_limit_of_open_files_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    check_start("10.0.0.1:6379")
    assert raised == [(1000, 1000)]


def test_too_few_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # the kernel does not limit root
    monkeypatch.setattr(ray_start, "_count_threads", lambda process: process.name == "1")
    monkeypatch.setattr(ray_start, "count_cpus", lambda: 2)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (300, 300))
    with pytest.raises(SpecError, match=r"Ray starts 300 threads or more, and 299 of 300 are left to this user"):
        check_start(None)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (301, 301))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    check_start(None)


@pytest.mark.parametrize("token", ["\ufeff" + "0" * 64, "0" * 8 + "\n" + "0" * 8, "0123 4567", "", "ä0123"])
def test_token_that_ray_cannot_send_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(
        SpecError, match="the token in RAY_AUTH_TOKEN must be of visible ASCII characters, got"
    ) as refused:
        check_token(token, "RAY_AUTH_TOKEN")
    assert not token or token not in str(refused.value)
    assert str(refused.value).isprintable()
    check_token("0" * 64, "RAY_AUTH_TOKEN")


@pytest.mark.parametrize("place", ["variable", "file", "home"])
def test_token_with_a_byte_order_mark_is_one_line_before_ray_aborts(tmp_path: Path, place: str) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_bytes(b"\xef\xbb\xbf" + b"0" * 64)
    name = {"variable": "RAY_AUTH_TOKEN", "file": str(token), "home": str(token)}[place]
    given = {"variable": {"RAY_AUTH_TOKEN": "\ufeff0000"}, "file": {"RAY_AUTH_TOKEN_PATH": name}}
    code, said = launched(tmp_path, **given.get(place, {"HOME": str(tmp_path)}))
    what = "must be of visible ASCII characters, got U+FEFF as character 1 (a byte order mark: save it without)"
    assert (code, said) == (2, f"error: the token in {name} {what}\n")


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_token_file_of_the_home_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # to be set back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.mkdir(parents=True)
    with pytest.raises(SpecError, match=r"^error: Ray's token must be kept in ~/\.ray/auth_token: .*Is a directory"):
        cluster.set_environment(address)
    token.rmdir()
    token.write_bytes("0123".encode("utf-16"))
    with pytest.raises(
        SpecError, match=rf"^error: the token in {token} must be of visible ASCII characters, got U\+"
    ):
        cluster.set_environment(address)


def test_python_without_docstrings_is_refused(tmp_path: Path) -> None:
    code, said = launched(tmp_path, PYTHONOPTIMIZE="2")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: Python must keep docstrings, which Ray needs, got PYTHONOPTIMIZE=2")


def test_cluster_that_is_gone_and_left_its_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    knock("auto")  # nothing is noted: Ray looks for one itself
    (tmp_path / "ray").mkdir()
    noted = tmp_path / "ray" / "ray_current_cluster"
    noted.write_text("127.0.0.1:1\n")
    with pytest.raises(
        NoClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: .*, which .* names for auto \(del"
    ):
        knock("auto")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(NoClusterError, match="names for auto"):
        knock("auto")


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), OSError("a\nb"), SystemError(""), KeyError("x"), AssertionError()]
)
def test_whatever_ray_raises_is_one_line(error: Exception) -> None:
    with (
        pytest.raises(SpecError, match=rf"Ray cannot start: {type(error).__name__}: \S") as told,
        start_errors("start"),
    ):
        raise error
    assert "\n" not in str(told.value)


def test_what_follows_an_announcement_is_told_instead_of_it() -> None:
    for text, told in (
        ("\nThe last 20 lines of x.log (it contains the error): \nfirst\nlast\n", "Exception: last"),
        ("The last 20 lines of x.log: ", "Exception: no reason given"),
        ("\n", "Exception: no reason given"),
    ):
        with pytest.raises(SpecError) as refused, start_errors("start"):
            raise Exception(text)
        assert str(refused.value) == f"error: Ray cannot start: {told}"


@pytest.mark.parametrize(("load", "later"), [(11.04, " later"), (1.5, "")])
def test_slow_start_that_fails_tells_how_long_how_busy_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, load: float, later: str
) -> None:
    monkeypatch.setattr(ray_start, "SLOW_S", 0.0)
    monkeypatch.setattr(ray_start, "count_cpus", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    with pytest.raises(SpecError) as refused, start_errors("start", advice=", or with --no-dashboard"):
        raise RuntimeError("timed out")
    busy = f"with a load of {load:.1f} on 2 CPUs: try again{later}, or with --no-dashboard"
    assert str(refused.value) == f"error: Ray cannot start: RuntimeError: timed out (after 0 s, {busy})"


# In C, where no exception and no signal handler of Python runs.
HANG = """
import ctypes, subprocess, sys
from qdtune.machine import own_folder
from qdtune.sweep import ray_start
ray_start.START_S, ray_start.LOOK_S, ray_start.GRACE_S = {seconds}, 0.05, 0.05
ray_start.count_cpus, ray_start.os.getloadavg = lambda: 2, lambda: (11.0, 11.0, 11.0)
with own_folder() as folder:
    worker = "sleep 600 & echo $! $0; wait"
    subprocess.Popen(["sh", "-c", worker, folder])
    {more}
    with ray_start.start_errors("start"):
        ctypes.CDLL(None).sleep(600)
"""
ADVICE = "with a load of 11.0 on 2 CPUs: try again later)"
HEAD = "head = subprocess.Popen(['sh', '-c', 'echo gcs_server > /proc/$$/comm; {}'])"


@pytest.mark.parametrize(
    ("seconds", "more", "why"),
    [
        (0.5, "", f"no answer (after 0 s, {ADVICE}"),
        (600, HEAD.format("kill -KILL $$"), f"its gcs_server has ended by SIGKILL (after 0 s, {ADVICE}"),
        (600, HEAD.format("exit 3"), f"its gcs_server has ended with exit code 3 (after 0 s, {ADVICE}"),
    ],
)
def test_start_that_never_ends_is_ended_with_its_processes_and_its_folder(
    tmp_path: Path, seconds: float, more: str, why: str
) -> None:
    code = HANG.format(seconds=seconds, more=more)
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    said = re.sub(r"after \d s", "after 0 s", done.stderr)  # on a busy machine
    assert (done.returncode, said) == (2, f"error: Ray cannot start: {why}\n")
    worker, folder = done.stdout.split()
    assert folder.startswith(f"{tmp_path}/qdtune-")
    assert list(tmp_path.iterdir()) == []
    assert not is_alive(int(worker))


def test_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(
        SpecError, match=r"Ray needs a home folder, and this user has none \(let HOME name a folder\)"
    ):
        check_start("10.0.0.1:6379")


def test_commands_that_ask_a_job_server_need_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("RAY_AUTH_TOKEN", " 0123 ")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.set_environment("10.0.0.1:6379")
    assert os.environ["RAY_AUTH_TOKEN"] == "0123"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    cluster.set_environment("10.0.0.1:6379")
