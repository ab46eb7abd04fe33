"""What a process leaves behind on its machine, however it ends."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qdtune.machine import (
    ASKING_SIGNALS,
    PASSING_SIGNALS,
    count_cpus,
    expand_home,
    handle_signals,
    has_compiler,
    own_folder,
    should_compile,
)
from qdtune.messages import SpecError

HOLDER = """
from qdtune.machine import own_folder
import sys
with own_folder() as folder:
    open(folder + "/big", "w").close()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_of_a_killed_process_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "qdtune-not-ours").mkdir()
    (tmp_path / "qdtune-link").symlink_to(tmp_path / "qdtune-not-ours")
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **quiet) as process:
        folder = process.stdout.readline().strip()
        assert os.stat(folder).st_mode & 0o777 == 0o700
        with own_folder() as mine:
            assert sorted(os.listdir(folder)) == ["big", "lock"]
            process.kill()
            process.wait()
            assert os.path.exists(folder)
            with own_folder():
                assert not os.path.exists(folder)
                assert os.path.exists(mine)
    assert sorted(os.listdir(tmp_path)) == ["qdtune-link", "qdtune-not-ours"]


def test_a_folder_goes_when_its_block_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ValueError, match="no"), own_folder():
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


WORKERS = """
import os, subprocess, sys
from qdtune.machine import leave, own_folder
with own_folder() as folder:
    writer = "while mkdir -p $0/r/logs; do :; done & echo $!; wait"
    pipe, places = subprocess.PIPE, (folder, sys.argv[1])
    children = [subprocess.Popen(["sh", "-c", writer, place], stdout=pipe) for place in places]
    print(*(int(child.stdout.readline()) for child in children), children[1].pid, flush=True)
    if sys.argv[2] == "leave":
        leave(7)
    if sys.argv[2] == "fail":
        sys.exit(7)
sys.exit(7)
"""


@pytest.mark.parametrize("end", ["return", "fail", "leave"])
def test_what_was_started_in_a_folder_ends_before_it_goes_and_nothing_else_ends(tmp_path, monkeypatch, end):
    """As Ray's processes do that were left when it could not start: they would make the folder anew."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    other = tmp_path / "other"
    command = [sys.executable, "-c", WORKERS, str(other), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ours, theirs, theirs_shell = map(int, process.stdout.readline().split())
        assert process.wait(60) == 7
    alive = {pid: is_alive(pid) for pid in (ours, theirs, theirs_shell)}
    for pid in (theirs_shell, theirs):
        os.kill(pid, signal.SIGKILL)
    assert alive == {ours: False, theirs: True, theirs_shell: True}
    assert os.listdir(tmp_path) == ["other"]


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for yet has ended."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("tools", [(), ("g++",), ("openssl",), ("g++", "openssl")])
def test_a_compiler_is_there_with_all_that_torch_calls(tmp_path, monkeypatch, tools):
    for tool in tools:
        (tmp_path / tool).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert has_compiler() is (len(tools) == 2)


def write_files(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("5:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("5:cpu:/host/a\n", {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("5:memory:/\n", {"memory/cpu.cfs_quota_us": "100000", "memory/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 8),
    ],
)
def test_cpus_are_as_many_as_the_container_may_use(tmp_path, monkeypatch, own, files, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    write_files(tmp_path, {"own": own, **{f"groups/{name}": text for name, text in files.items()}})
    assert count_cpus(tmp_path / "groups", tmp_path / "own") == count


def test_cpus_are_those_that_taskset_leaves(tmp_path):
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-m", "qdtune", "launch"]
    sweep = "version: 1\nname: a\nparameters: {depth: {value: 1}}\ndata: {dataset: digits, val_size: 100}\n"
    (tmp_path / "a.yaml").write_text(sweep)
    done = subprocess.run([*command, "a.yaml", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"at once +1 trial, .*\(this machine: 1 CPU,", done.stdout), done.stdout


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_home(path) for path in ("~", "~/a", "~root", "a~", "./~/a", "/~")] == [
        "/home/me",
        "/home/me/a",
        os.path.expanduser("~root"),
        "a~",
        "./~/a",
        "/~",
    ]
    with pytest.raises(SpecError, match=re.escape("~nobody-here is no known home folder (for a folder of this name")):
        expand_home("~nobody-here/a")


def test_signals_of_terminals_and_batch_systems_are_handled_alike(monkeypatch):
    before = {number: signal.getsignal(number) for number in (*ASKING_SIGNALS, *PASSING_SIGNALS)}
    noted = []
    with handle_signals(lambda number, frame: noted.append(number)):
        for number in before:
            os.kill(os.getpid(), number)
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]
    assert [signal.Signals(number).name for number in noted] == names
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    noted = []
    try:
        with handle_signals(lambda number, frame: noted.append(number)):
            os.kill(os.getpid(), signal.SIGHUP)
        assert noted == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_is_made_where_there_are_no_locks(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_folder() as folder:
        assert not os.path.exists(f"{folder}/lock")  # nobody may take it for left over
        with own_folder() as other:
            assert os.path.exists(folder)
            assert other != folder
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("phase", "epochs", "convolves", "expected"),
    [
        ("qat", 25, False, True),  # 100 steps an epoch
        ("qat", 24, False, False),
        ("qat", 10_000, True, False),
        ("warmup", 200, False, True),
        ("warmup", 199, False, False),
    ],
)
def test_what_gains_more_than_compiling_takes_is_compiled(phase, epochs, convolves, expected):
    for compile, answer in (("auto", expected), ("always", True), ("never", False)):
        assert should_compile(compile, phase, epochs, 10, 1_009, convolves) is answer
